//! UTF-8 of text that arrives in pieces (RFC 6455 §5.6, §8.1).
//!
//! A piece may end inside a character; the one to three bytes of its beginning are carried to the next piece, so
//! nothing is looked at twice and no piece has to be kept for this. Invalid text is refused with the first byte that
//! no valid text could have there: `f4 90` fails at `90`, not at the end of the message. The bulk goes through
//! simdutf8. Called by the receiver of messages; whole messages take [`is_valid`].

/// The text is not UTF-8 and no later byte can make it so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidUtf8;

/// State between the pieces of one text: the begun character, if any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Validator {
    begun: [u8; 4],
    begun_len: u8,
}

/// Whether `bytes` as a whole are UTF-8.
#[inline]
pub fn is_valid(bytes: &[u8]) -> bool {
    simdutf8::basic::from_utf8(bytes).is_ok()
}

impl Validator {
    /// Looks at the next piece of the text.
    ///
    /// # Errors
    /// [`InvalidUtf8`] as soon as the text so far is the beginning of no valid text.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), InvalidUtf8> {
        let rest = self.finish_begun(bytes)?;
        if self.begun_len > 0 {
            return Ok(());
        }
        let Err(error) = simdutf8::compat::from_utf8(rest) else {
            return Ok(());
        };
        if error.error_len().is_some() {
            return Err(InvalidUtf8);
        }
        let begun = &rest[error.valid_up_to()..];
        self.begun[..begun.len()].copy_from_slice(begun);
        self.begun_len = begun.len() as u8;
        Ok(())
    }

    /// Ends the text.
    ///
    /// # Errors
    /// [`InvalidUtf8`] when it ends inside a character.
    pub fn finish(&self) -> Result<(), InvalidUtf8> {
        if self.begun_len == 0 { Ok(()) } else { Err(InvalidUtf8) }
    }

    /// Feeds single bytes to a begun character until it is whole, and returns what comes after it.
    fn finish_begun<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], InvalidUtf8> {
        let mut rest = bytes;
        while self.begun_len > 0 {
            let Some((&byte, after)) = rest.split_first() else {
                break;
            };
            let begun_len = usize::from(self.begun_len);
            self.begun[begun_len] = byte;
            rest = after;
            match std::str::from_utf8(&self.begun[..=begun_len]) {
                Ok(_) => self.begun_len = 0,
                // A begun character has at most three bytes: with four it is whole or wrong.
                Err(error) if error.error_len().is_none() => self.begun_len += 1,
                Err(_) => return Err(InvalidUtf8),
            }
        }
        Ok(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::{InvalidUtf8, Validator, is_valid};
    use proptest::prelude::*;

    /// Number of bytes that are accepted one by one before the refusal; `None` when all are.
    fn refused_at(bytes: &[u8]) -> Option<usize> {
        let mut validator = Validator::default();
        bytes.iter().position(|byte| validator.push(&[*byte]).is_err())
    }

    #[test]
    fn text_is_refused_with_the_first_byte_that_no_text_has_there() {
        for (bytes, at) in [
            (&b"\xf4\x90\x80\x80"[..], 1),
            (b"ab\xc0\xaf", 2),
            (b"\xed\xa0\x80", 1),
            (b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited", 12),
            (b"\xe0\x80\x80", 1),
            (b"\xf0\x80\x80\x80", 1),
            (b"\xf8\x88\x80\x80\x80", 0),
            (b"\x80", 0),
            (b"\xe2\x82\x41", 2),
            (b"\xff", 0),
        ] {
            assert_eq!(refused_at(bytes), Some(at), "{bytes:x?}");
        }
    }

    #[test]
    fn text_that_ends_inside_a_character_is_refused_at_its_end_only() {
        for bytes in [&b"\xf0\x9f\x98"[..], b"abc\xe2\x82", b"\xc3"] {
            let mut validator = Validator::default();
            assert_eq!(validator.push(bytes), Ok(()));
            assert_eq!(validator.finish(), Err(InvalidUtf8));
        }
    }

    /// Bytes that are nearly text: pieces of characters, so that cuts and faults are frequent.
    fn nearly_text() -> impl Strategy<Value = Vec<u8>> {
        let pieces = prop_oneof![
            8 => any::<char>().prop_map(|c| c.to_string().into_bytes()),
            4 => Just(b"plain ascii".to_vec()),
            1 => any::<u8>().prop_map(|b| vec![b]),
        ];
        prop::collection::vec(pieces, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_are_judged_as_the_whole(
            bytes in nearly_text(),
            sizes in prop::collection::vec(1usize..20, 1..10),
        ) {
            let mut validator = Validator::default();
            let mut rest = &bytes[..];
            let mut verdict = Ok(());
            for size in sizes.iter().cycle() {
                if rest.is_empty() || verdict.is_err() {
                    break;
                }
                let (piece, after) = rest.split_at((*size).min(rest.len()));
                verdict = validator.push(piece);
                rest = after;
            }
            let verdict = verdict.and_then(|()| validator.finish());
            prop_assert_eq!(verdict.is_ok(), std::str::from_utf8(&bytes).is_ok());
            prop_assert_eq!(verdict.is_ok(), is_valid(&bytes));
        }
    }
}
