//! permessage-deflate as a client that only receives it (RFC 7692): what is offered, what the server's answer means, and inflating.
//!
//! The codec is miniz_oxide, which shares no code with the server's. So that the generator is no bottleneck, a message that a thousand
//! receivers get with the same bytes is inflated once, which [`Inflater`] finds out by comparing those bytes; every receiver's copy is then
//! looked at as a whole all the same. A server that keeps its context between messages sends each receiver other bytes, and costs an
//! inflate and a window of 32 KiB for each of them. Called by `connection`.

use miniz_oxide::inflate::stream::{InflateState, MinReset, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

/// What browsers offer. Nothing is sent compressed, so whatever the server asks of our side holds.
pub const OFFER: &str = "permessage-deflate; client_max_window_bits";

/// What a sync flush ends with, left out on the wire (RFC 7692 §7.2.2).
const FLUSH_END: [u8; 4] = [0x00, 0x00, 0xff, 0xff];
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Messages whose bytes are remembered: members of one channel are a few messages apart at most.
const RECENT: usize = 32;

/// What the server agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// Messages may refer to earlier ones of the connection (§7.1.1.1).
    pub keeps_context: bool,
}

/// What the `Sec-WebSocket-Extensions` of the server's answer agrees to; `None` without the header.
///
/// # Errors
/// The answer, if it names what was not offered.
pub fn agreed(answer: Option<&str>) -> Result<Option<Agreement>, String> {
    let Some(answer) = answer else {
        return Ok(None);
    };
    let wrong = || Err(format!("answered the offer of {OFFER} with Sec-WebSocket-Extensions: {answer}"));
    let mut parts = answer.split(';').map(str::trim);
    if parts.next() != Some("permessage-deflate") {
        return wrong();
    }
    let mut agreement = Agreement { keeps_context: true };
    for part in parts {
        let (name, value) =
            part.split_once('=').map_or((part, None), |(name, value)| (name, Some(value.trim_matches('"'))));
        let bits = value.and_then(|value| value.parse::<u8>().ok()).is_some_and(|bits| (8..=15).contains(&bits));
        match name.trim() {
            "server_no_context_takeover" if value.is_none() => agreement.keeps_context = false,
            "client_no_context_takeover" if value.is_none() => {}
            "server_max_window_bits" | "client_max_window_bits" if bits => {}
            _ => return wrong(),
        }
    }
    Ok(Some(agreement))
}

/// What one connection's messages may refer to; empty and unallocated until the first.
#[derive(Default)]
pub struct Context(Option<Box<InflateState>>);

/// Inflates the messages of all connections.
pub struct Inflater {
    state: Box<InflateState>,
    recent: Vec<(Vec<u8>, Vec<u8>)>,
    next: usize,
    plain: Vec<u8>,
}

impl Default for Inflater {
    fn default() -> Self {
        Self { state: InflateState::new_boxed(DataFormat::Raw), recent: Vec::new(), next: 0, plain: Vec::new() }
    }
}

impl Inflater {
    /// The message that `payload` holds, for a connection with this agreement and context.
    ///
    /// # Errors
    /// In words, when it is no DEFLATE stream, is cut off, or is longer than 16 MiB.
    pub fn message(
        &mut self,
        payload: &[u8],
        agreement: Agreement,
        context: &mut Context,
    ) -> Result<&[u8], &'static str> {
        if agreement.keeps_context {
            let state = context.0.get_or_insert_with(|| InflateState::new_boxed(DataFormat::Raw));
            run(state, payload, &mut self.plain)?;
            return Ok(&self.plain);
        }
        if let Some(index) = self.recent.iter().position(|(known, _)| known == payload) {
            return Ok(&self.recent[index].1);
        }
        self.state.reset_as(MinReset);
        if self.recent.len() < RECENT {
            self.recent.push((Vec::new(), Vec::new()));
        }
        let index = self.next;
        self.next = (index + 1) % RECENT;
        let (known, plain) = &mut self.recent[index];
        known.clear();
        run(&mut self.state, payload, plain)?;
        known.extend_from_slice(payload);
        Ok(plain)
    }
}

/// Inflate one whole message into `plain`.
fn run(state: &mut InflateState, payload: &[u8], plain: &mut Vec<u8>) -> Result<(), &'static str> {
    plain.clear();
    let mut end = 0;
    for mut input in [payload, &FLUSH_END[..]] {
        loop {
            if end == plain.len() {
                if end >= MESSAGE_BYTES_MAX {
                    return Err("message inflates to more than 16 MiB");
                }
                plain.resize((2 * end).max(2048), 0);
            }
            let step = inflate(state, input, &mut plain[end..], MZFlush::Sync);
            input = &input[step.bytes_consumed..];
            end += step.bytes_written;
            let full = end == plain.len();
            match step.status {
                Ok(MZStatus::StreamEnd) => {
                    // What comes after a final block is a stream of its own (§7.2.3.4); without any, nothing was cut off.
                    state.reset_as(MinReset);
                    if input.is_empty() {
                        plain.truncate(end);
                        return Ok(());
                    }
                }
                Ok(_) | Err(MZError::Buf) if full => {}
                // All that could come of it has been written: there was room left.
                Ok(_) | Err(MZError::Buf) if input.is_empty() => break,
                Ok(_) if step.bytes_consumed + step.bytes_written > 0 => {}
                _ => return Err("message is no DEFLATE stream"),
            }
        }
    }
    plain.truncate(end);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use miniz_oxide::deflate::core::{
        CompressorOxide, TDEFLFlush, compress_to_output, create_comp_flags_from_zip_params,
    };

    const ALONE: Agreement = Agreement { keeps_context: false };
    const GOING_ON: Agreement = Agreement { keeps_context: true };

    /// What a server sends of `text`, whose stream goes on in `stream`.
    fn compressed(stream: &mut CompressorOxide, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        compress_to_output(stream, text, TDEFLFlush::Sync, |bytes| {
            out.extend_from_slice(bytes);
            true
        });
        assert!(out.ends_with(&FLUSH_END));
        out.truncate(out.len() - FLUSH_END.len());
        out
    }

    fn stream() -> CompressorOxide {
        CompressorOxide::new(create_comp_flags_from_zip_params(6, -15, 0))
    }

    #[test]
    fn hello_is_the_example_of_rfc_7692_7_2_3_1_and_its_second_one_refers_to_the_first() {
        let mut inflater = Inflater::default();
        let first = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        assert_eq!(inflater.message(&first, ALONE, &mut Context::default()), Ok(&b"Hello"[..]));
        let mut context = Context::default();
        assert_eq!(inflater.message(&first, GOING_ON, &mut context), Ok(&b"Hello"[..]));
        assert_eq!(inflater.message(&[0xf2, 0x00, 0x11, 0x00, 0x00], GOING_ON, &mut context), Ok(&b"Hello"[..]));
        // §7.2.3.3 and §7.2.3.4: a stored block, and a final one.
        let stored = [0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00];
        assert_eq!(inflater.message(&stored, ALONE, &mut Context::default()), Ok(&b"Hello"[..]));
        let last = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00];
        assert_eq!(inflater.message(&last, ALONE, &mut Context::default()), Ok(&b"Hello"[..]));
    }

    #[test]
    fn messages_of_any_size_come_out_as_they_went_in_alone_and_with_a_context() {
        let mut inflater = Inflater::default();
        let mut context = Context::default();
        let mut going_on = stream();
        for len in [0, 1, 730, 2_047, 2_048, 2_049, 70_000] {
            let text: Vec<u8> = (0..len).map(|index| b"abcdefgh \"{"[(index * index / 7) % 11]).collect();
            let alone = compressed(&mut stream(), &text);
            for _ in 0..2 {
                assert!(inflater.message(&alone, ALONE, &mut Context::default()) == Ok(&text), "{len}");
            }
            let next = compressed(&mut going_on, &text);
            assert!(inflater.message(&next, GOING_ON, &mut context) == Ok(&text), "{len}");
        }
    }

    #[test]
    fn equal_bytes_are_inflated_once_and_what_is_no_stream_is_said_every_time() {
        let mut inflater = Inflater::default();
        for round in 0..3 * RECENT {
            let text = format!("message {}", round % (RECENT + 1));
            let payload = compressed(&mut stream(), text.as_bytes());
            assert_eq!(inflater.message(&payload, ALONE, &mut Context::default()), Ok(text.as_bytes()));
            assert!(inflater.recent.len() <= RECENT);
        }
        for _ in 0..2 {
            assert!(inflater.message(&[0xff, 0xff, 0xff], ALONE, &mut Context::default()).is_err());
        }
    }

    #[test]
    fn answers_that_no_offer_of_ours_allows_are_refused() {
        assert_eq!(agreed(None), Ok(None));
        assert_eq!(agreed(Some("permessage-deflate")), Ok(Some(GOING_ON)));
        for answer in [
            "permessage-deflate; server_no_context_takeover; client_max_window_bits=15",
            "permessage-deflate;client_no_context_takeover;server_no_context_takeover",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=\"12\"",
        ] {
            assert_eq!(agreed(Some(answer)), Ok(Some(ALONE)), "{answer}");
        }
        for answer in
            ["", "x-webkit-deflate-frame", "permessage-deflate; client_max_window_bits=16", "permessage-deflate; more"]
        {
            assert!(agreed(Some(answer)).is_err(), "{answer}");
        }
    }
}
