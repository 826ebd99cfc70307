//! Session ids: 128 bits that nobody can guess, and that lead back to the connection without a table.
//!
//! An id is one block of AES-128: the connection (64 bits: shard, generation, slot) and a salt (64 bits), encrypted by a
//! key that the system's random source gives at each start. A client that has seen any number of ids can neither
//! make another one nor read slot or generation from its own. An id that the server did not make decrypts to another
//! salt, but for one in 2^64. Ids of an earlier start mean nothing.

use crate::ConnId;
use aes::Aes128;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};

/// Characters of an id: 128 bits in lower-case hexadecimal digits, as they go into JSON, paths and logs.
const CHARS: usize = 32;

/// Makes the ids of one start and reads them.
pub(crate) struct SessionIds {
    cipher: Aes128,
    salt: [u8; 8],
}

impl SessionIds {
    pub(crate) fn new(key: [u8; 16], salt: [u8; 8]) -> Self {
        Self { cipher: Aes128::new(&key.into()), salt }
    }

    /// The id of a connection.
    pub(crate) fn id_of(&self, conn: ConnId) -> String {
        let mut block = [0; 16];
        block[..8].copy_from_slice(&conn.as_u64().to_be_bytes());
        block[8..].copy_from_slice(&self.salt);
        let mut block = block.into();
        self.cipher.encrypt_block(&mut block);
        let mut id = String::with_capacity(CHARS);
        for byte in block {
            for digit in [byte >> 4, byte & 0xF] {
                id.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
            }
        }
        id
    }

    /// The connection that an id names; `None` where this start did not make it.
    pub(crate) fn conn_of(&self, id: &str) -> Option<ConnId> {
        if id.len() != CHARS || id.bytes().any(|b| !b.is_ascii_digit() && !(b'a'..=b'f').contains(&b)) {
            return None;
        }
        let mut block = u128::from_str_radix(id, 16).ok()?.to_be_bytes().into();
        self.cipher.decrypt_block(&mut block);
        let block: [u8; 16] = block.into();
        // Which bits of the salt differ says nothing of the key: the permutation spreads each bit over all.
        let (conn, salt) = block.split_first_chunk::<8>()?;
        (*salt == self.salt).then(|| ConnId::from_u64(u64::from_be_bytes(*conn)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_block_of_aes_128() {
        // FIPS 197, appendix C.1: key 000102…0f, plaintext 00112233445566778899aabbccddeeff.
        let key = std::array::from_fn(|i| i as u8);
        let ids = SessionIds::new(key, [0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
        let conn = ConnId::from_u64(0x0011_2233_4455_6677);
        assert_eq!(ids.id_of(conn), "69c4e0d86a7b0430d8cdb78070b4c55a");
        assert_eq!(ids.conn_of("69c4e0d86a7b0430d8cdb78070b4c55a"), Some(conn));
    }

    #[test]
    fn ids_of_neighbours_have_nothing_in_common_and_lead_back() {
        let ids = SessionIds::new([7; 16], [9; 8]);
        for slot in 0..1_000 {
            let [one, next] = [slot, slot + 1].map(|slot| ids.id_of(ConnId::new(0, 0, slot)));
            let differing = one.bytes().zip(next.bytes()).filter(|(a, b)| a != b).count();
            assert!(differing > CHARS / 2, "{one} {next}");
            assert_eq!(ids.conn_of(&one), Some(ConnId::new(0, 0, slot)));
        }
    }

    #[test]
    fn an_id_that_was_not_made_here_names_no_connection() {
        let ids = SessionIds::new([7; 16], [9; 8]);
        let good = ids.id_of(ConnId::new(0, 0, 1));
        for at in 0..CHARS {
            let mut forged = good.clone().into_bytes();
            forged[at] = if forged[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(ids.conn_of(std::str::from_utf8(&forged).unwrap()), None, "{at}");
        }
        let other_start = SessionIds::new([8; 16], [9; 8]).id_of(ConnId::new(0, 0, 1));
        let shorter = &good[..CHARS - 1];
        let upper = good.to_uppercase();
        for bad in ["", "nonsense", shorter, &upper, &other_start, &format!("+{shorter}"), &format!("{good}0")] {
            assert_eq!(ids.conn_of(bad), None, "{bad}");
        }
    }
}
