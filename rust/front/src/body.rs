//! Where a body ends (RFC 9112 §6), and what its bytes are without the chunks around them.
//!
//! Strict: sizes in at most 15 hexadecimal digits, lines that end with CRLF, extensions and trailers within a limit
//! and thrown away. Whatever the reads are cut into, the same bytes come out.

/// Bytes of one line of a chunk's size with its extensions, and of all trailers together.
const LINES_BYTES_MAX: usize = 4 * 1024;
/// More would not fit what a length is counted in.
const SIZE_DIGITS_MAX: usize = 15;

/// Bytes that are no body of this framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// How a body ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// After so many more bytes.
    Length(u64),
    /// With its last chunk.
    Chunked(Chunks),
    /// With the connection.
    Close,
}

impl Framing {
    pub(crate) fn chunked() -> Self {
        Self::Chunked(Chunks::default())
    }

    /// Whether nothing of it is missing.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.at == At::End,
            Self::Close => false,
        }
    }

    /// Appends the body's bytes of `input` to `out`, and returns how many of `input` were of the body and its frame.
    ///
    /// # Errors
    /// What came is no body.
    pub(crate) fn take(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Malformed> {
        match self {
            Self::Length(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                out.extend_from_slice(&input[..count]);
                *left -= count as u64;
                Ok(count)
            }
            Self::Chunked(chunks) => chunks.take(input, out),
            Self::Close => {
                out.extend_from_slice(input);
                Ok(input.len())
            }
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// In the digits of a size.
    #[default]
    Size,
    /// Behind them, in extensions.
    Extension,
    /// Before the line feed of a size.
    SizeEnd,
    /// In the bytes of a chunk.
    Data,
    /// Behind them.
    DataEnd,
    DataLineFeed,
    /// At the begin of a trailer, or of the last line.
    Line,
    Trailer,
    TrailerEnd,
    LastLineFeed,
    End,
}

/// A body in chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunks {
    at: At,
    left: u64,
    digits: usize,
    /// Bytes of extensions of this line, or of all trailers.
    line_bytes: usize,
}

impl Chunks {
    fn take(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Malformed> {
        let mut used = 0;
        while used < input.len() && self.at != At::End {
            if self.at == At::Data {
                let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len() - used);
                out.extend_from_slice(&input[used..used + count]);
                used += count;
                self.left -= count as u64;
                if self.left == 0 {
                    self.at = At::DataEnd;
                }
            } else {
                self.at = self.next(input[used])?;
                used += 1;
            }
        }
        Ok(used)
    }

    /// Where one byte of the frame leads.
    fn next(&mut self, byte: u8) -> Result<At, Malformed> {
        match (self.at, byte) {
            (At::Size, _) if byte.is_ascii_hexdigit() => self.digit(byte),
            (At::Size, b';' | b' ' | b'\t') if self.digits > 0 => {
                self.line_bytes = 0;
                Ok(At::Extension)
            }
            (At::Size, b'\r') if self.digits > 0 => Ok(At::SizeEnd),
            (At::Extension, b'\r') => Ok(At::SizeEnd),
            (At::Extension, _) => self.of_line(byte, At::Extension),
            (At::SizeEnd, b'\n') => {
                self.digits = 0;
                self.line_bytes = 0;
                Ok(if self.left == 0 { At::Line } else { At::Data })
            }
            (At::DataEnd, b'\r') => Ok(At::DataLineFeed),
            (At::DataLineFeed, b'\n') => Ok(At::Size),
            (At::Line, b'\r') => Ok(At::LastLineFeed),
            (At::Trailer, b'\r') => Ok(At::TrailerEnd),
            (At::Line | At::Trailer, _) => self.of_line(byte, At::Trailer),
            (At::TrailerEnd, b'\n') => Ok(At::Line),
            (At::LastLineFeed, b'\n') => Ok(At::End),
            _ => Err(Malformed),
        }
    }

    fn digit(&mut self, byte: u8) -> Result<At, Malformed> {
        self.digits += 1;
        if self.digits > SIZE_DIGITS_MAX {
            return Err(Malformed);
        }
        let digit = (byte as char).to_digit(16).ok_or(Malformed)?;
        self.left = self.left * 16 + u64::from(digit);
        Ok(At::Size)
    }

    fn of_line(&mut self, byte: u8, at: At) -> Result<At, Malformed> {
        self.line_bytes += 1;
        let is_text = byte == b'\t' || (byte >= b' ' && byte != 0x7F);
        if is_text && self.line_bytes <= LINES_BYTES_MAX { Ok(at) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(input: &[u8]) -> Result<(Vec<u8>, usize, bool), Malformed> {
        let (mut framing, mut out) = (Framing::chunked(), Vec::new());
        let used = framing.take(input, &mut out)?;
        Ok((out, used, framing.is_whole()))
    }

    #[test]
    fn chunks_become_the_bytes_in_them() {
        let input = b"3\r\nabc\r\n00A;x=\"y\"\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\nGET";
        let (out, used, is_whole) = whole(input).unwrap();
        assert_eq!((out.as_slice(), used, is_whole), (&b"abc0123456789"[..], input.len() - 3, true));
    }

    #[test]
    fn what_two_programs_could_read_differently_is_refused() {
        for input in [
            &b"3\nabc\r\n"[..],
            b"\r\n",
            b";\r\n",
            b"0x3\r\nabc\r\n",
            b"-1\r\n",
            b"+3\r\nabc\r\n",
            b"3\r\nabcd\r\n",
            b"3\r\nabc\n0\r\n\r\n",
            b"3\r\rabc",
            b"1000000000000000\r\n",
            b"3 \nabc",
            b"3;\x00\r\n",
            b"0\r\nX: y\n\r\n",
            b"0\r\n\n",
        ] {
            assert_eq!(whole(input), Err(Malformed), "{:?}", String::from_utf8_lossy(input));
        }
    }

    #[test]
    fn extensions_and_trailers_are_thrown_away_up_to_a_limit() {
        let extension = |len: usize| [b"1;", "x".repeat(len).as_bytes(), b"\r\na\r\n"].concat();
        assert!(whole(&extension(LINES_BYTES_MAX)).is_ok());
        assert!(whole(&extension(LINES_BYTES_MAX + 1)).is_err());
        let trailers = |len: usize| [b"0\r\n".to_vec(), b"a: b\r\n".repeat(len)].concat();
        assert!(whole(&trailers(LINES_BYTES_MAX / 4)).is_ok());
        assert!(whole(&trailers(LINES_BYTES_MAX / 4 + 1)).is_err());
    }

    #[test]
    fn a_length_takes_that_many_bytes() {
        let (mut framing, mut out) = (Framing::Length(4), Vec::new());
        assert_eq!(framing.take(b"abc", &mut out), Ok(3));
        assert!(!framing.is_whole());
        assert_eq!(framing.take(b"def", &mut out), Ok(1));
        assert!(framing.is_whole());
        assert_eq!(out, b"abcd");
    }

    proptest! {
        #[test]
        fn the_same_bytes_come_out_however_the_reads_are_cut(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            cuts in prop::collection::vec(1usize..9, 1..200),
        ) {
            let mut input = Vec::new();
            for part in &parts {
                input.extend_from_slice(format!("{:X}\r\n", part.len()).as_bytes());
                input.extend_from_slice(part);
                input.extend_from_slice(b"\r\n");
            }
            input.extend_from_slice(b"0\r\n\r\n");
            let (mut framing, mut out) = (Framing::chunked(), Vec::new());
            let mut rest = &input[..];
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let (piece, after) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                prop_assert_eq!(framing.take(piece, &mut out), Ok(piece.len()));
                rest = after;
            }
            prop_assert!(framing.is_whole());
            prop_assert_eq!(out, parts.concat());
        }

        #[test]
        fn no_bytes_whatsoever_make_it_panic(input in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = whole(&input);
        }
    }
}
