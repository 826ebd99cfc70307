//! A long array in parts: what Python decodes at once must not hold its event loop.

use super::{Fault, Invalid, Span, Walk};

/// Bytes after which a slice ends, too: what Python only steps over takes it time as well.
const SLICE_BYTES: usize = 256 << 10;

/// Some elements of an array, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// From the first byte of the first element to the last byte of the last one.
    pub span: Span,
    /// The elements.
    pub count: usize,
}

/// Holds a JSON text to the rules of a message, and each element of an array by itself to `values_max` values.
///
/// Returns the elements of the array in slices, each ended by the element that brings it to `slice_values` values or
/// [`SLICE_BYTES`]; None for another text, which may have `values_max` values as a whole. The array counts no value.
///
/// # Errors
/// [`Invalid`] for whatever the protocol does not take; the bytes may then be partly rewritten.
pub fn slices(bytes: &mut [u8], values_max: usize, slice_values: usize) -> Result<Option<Vec<Slice>>, Invalid> {
    let (mut keys, mut members) = (Vec::new(), Vec::new());
    let mut walk = Walk::new(bytes, values_max, &mut keys, &mut members);
    walk.space();
    let outcome =
        if walk.peek() == Some(b'[') { walk.elements(slice_values).map(Some) } else { walk.value(1).map(|_| None) };
    let outcome = outcome.and_then(|found| walk.end().map(|()| found));
    outcome.map_err(|fault| Invalid { fault, at: walk.at })
}

impl Walk<'_> {
    /// The elements of the array that begins here.
    fn elements(&mut self, slice_values: usize) -> Result<Vec<Slice>, Fault> {
        let mut found = Vec::new();
        let (mut slice, mut values): (Option<Slice>, usize) = (None, 0);
        self.array_of(&mut |walk| {
            walk.values_left = walk.values_max;
            let span = walk.value(2)?.span;
            values += walk.values_max - walk.values_left;
            let start = slice.map_or(span.start, |slice| slice.span.start);
            let count = slice.map_or(0, |slice| slice.count) + 1;
            let grown = Slice { span: Span { start, end: span.end }, count };
            slice = Some(grown).filter(|grown| values < slice_values && grown.span.end - start < SLICE_BYTES);
            if slice.is_none() {
                values = 0;
                found.push(grown);
            }
            Ok(())
        })?;
        found.extend(slice);
        Ok(found)
    }
}
