//! Text to fill events with that compresses about as chat does: words in no order, the same in every run.
//!
//! An event's text is a slice of one long text at a place that its number gives, so that a receiver's copy can be compared without making
//! it again. A run of one letter would compress to nothing, and random letters not at all.

const WORDS: [&str; 64] = [
    "the", "and", "message", "time", "to", "of", "a", "in", "that", "is", "was", "for", "on", "are", "with", "they",
    "be", "at", "one", "have", "this", "from", "or", "had", "by", "word", "but", "what", "some", "we", "can", "out",
    "other", "were", "all", "there", "when", "up", "use", "your", "how", "said", "an", "each", "she", "which", "do",
    "their", "if", "will", "way", "about", "many", "then", "them", "write", "would", "like", "so", "these", "her",
    "long", "make", "thing",
];
/// Places at which a text may begin.
const PLACES: usize = 64 * 1024;
/// A step between the texts of two numbers in a row; odd, so that all places have their turn.
const STEP: u64 = 7_919;

/// The long text.
pub struct Corpus(Vec<u8>);

impl Corpus {
    /// Texts of at most `len_max` bytes.
    #[must_use]
    pub fn new(len_max: usize) -> Self {
        let mut text = Vec::with_capacity(PLACES + len_max + 16);
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        while text.len() < PLACES + len_max {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.extend_from_slice(WORDS[(state >> 58) as usize].as_bytes());
            // Now and then a number, as ids and times are in events.
            if state >> 32 & 7 == 0 {
                text.extend_from_slice(format!(" {}", state >> 40 & 0xffff).as_bytes());
            }
            text.push(b' ');
        }
        Self(text)
    }

    /// The text of `len` bytes of event `seq`.
    #[must_use]
    pub fn text(&self, seq: u64, len: usize) -> &[u8] {
        let at = (seq.wrapping_mul(STEP) % PLACES as u64) as usize;
        &self.0[at..at + len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use miniz_oxide::deflate::compress_to_vec;

    #[test]
    fn texts_differ_are_plain_and_compress_to_about_half() {
        let corpus = Corpus::new(600);
        assert_ne!(corpus.text(1, 600), corpus.text(2, 600));
        assert!(corpus.text(3, 600).iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b' '));
        for seq in [0, 1, 99, u64::MAX] {
            let packed = compress_to_vec(corpus.text(seq, 600), 6).len();
            assert!((200..400).contains(&packed), "600 bytes became {packed}");
        }
    }
}
