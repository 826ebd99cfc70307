//! Masking of payloads (RFC 6455 §5.3): XOR with a key of four bytes, its own inverse.
//!
//! A payload may arrive in pieces, so the key is turned to where the piece begins; after that every eight bytes take
//! one XOR, a loop that the compiler turns into vector instructions. Called by the receiver for each piece and by
//! clients (tests, load generator) for each frame.

/// Masks or unmasks `bytes`, whose first byte is byte `offset` of the frame's payload.
pub fn apply(mask: [u8; 4], offset: usize, bytes: &mut [u8]) {
    let mut key = mask;
    key.rotate_left(offset % 4);
    let [a, b, c, d] = key;
    // Native order on both sides: the word holds the same bytes as memory does.
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for chunk in words {
        *chunk = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
    }
    for (byte, key_byte) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key_byte;
    }
}

#[cfg(test)]
mod tests {
    use super::apply;
    use proptest::prelude::*;

    #[test]
    fn the_masked_hello_of_rfc_6455_5_7_is_unmasked() {
        let mut bytes = [0x7f, 0x9f, 0x4d, 0x51, 0x58];
        apply([0x37, 0xfa, 0x21, 0x3d], 0, &mut bytes);
        assert_eq!(&bytes, b"Hello");
    }

    proptest! {
        #[test]
        fn words_give_what_single_bytes_give(
            mask: [u8; 4],
            offset in 0usize..9,
            bytes in prop::collection::vec(any::<u8>(), 0..70),
        ) {
            let expected: Vec<u8> = bytes.iter().enumerate().map(|(i, b)| b ^ mask[(offset + i) % 4]).collect();
            let mut masked = bytes;
            apply(mask, offset, &mut masked);
            prop_assert_eq!(masked, expected);
        }

        #[test]
        fn a_payload_masked_in_two_pieces_is_masked_as_one(
            mask: [u8; 4],
            bytes in prop::collection::vec(any::<u8>(), 0..70),
            cut in any::<prop::sample::Index>(),
        ) {
            let cut = cut.index(bytes.len() + 1);
            let mut whole = bytes.clone();
            apply(mask, 0, &mut whole);
            let mut pieces = bytes;
            let (head, tail) = pieces.split_at_mut(cut);
            apply(mask, 0, head);
            apply(mask, cut, tail);
            prop_assert_eq!(pieces, whole);
        }
    }
}
