//! `FrameEncoder` and `Frame`: a message as the bytes of one server frame (RFC 6455 §5.2), made once for every receiver.
//!
//! For those who have their own transports and take from this package only the encoding. What is encoded is a Python
//! `bytes` from the start, so nothing is copied again on its way to a transport. Frames do not change: any thread may
//! use them.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use realtime_protocol::frame::{Opcode, encode_header};
use realtime_protocol::utf8;

/// Makes frames of messages.
#[pyclass(frozen, module = "realtime._engine")]
pub(crate) struct FrameEncoder {}

#[pymethods]
impl FrameEncoder {
    #[new]
    fn new() -> Self {
        Self {}
    }

    fn text(&self, text: &Bound<'_, PyAny>) -> PyResult<Frame> {
        if let Ok(text) = text.cast::<PyString>() {
            return Frame::new(text.py(), Opcode::Text, text.to_str()?.as_bytes());
        }
        with_bytes(text, "text", "str or bytes-like of UTF-8", |payload| {
            if !utf8::is_valid(payload) {
                return Err(not_utf8(payload));
            }
            Frame::new(text.py(), Opcode::Text, payload)
        })
    }

    fn binary(&self, payload: &Bound<'_, PyAny>) -> PyResult<Frame> {
        with_bytes(payload, "binary", "bytes-like", |bytes| Frame::new(payload.py(), Opcode::Binary, bytes))
    }
}

/// One message, encoded.
#[pyclass(frozen, module = "realtime._engine")]
pub(crate) struct Frame {
    opcode: Opcode,
    header_len: usize,
    plain: Py<PyBytes>,
}

impl Frame {
    fn new(py: Python<'_>, opcode: Opcode, payload: &[u8]) -> PyResult<Self> {
        let (plain, header_len) = frame_bytes(py, opcode, false, payload)?;
        Ok(Self { opcode, header_len, plain })
    }

    fn payload_of<'a>(&'a self, py: Python<'a>) -> &'a [u8] {
        &self.plain.as_bytes(py)[self.header_len..]
    }
}

#[pymethods]
impl Frame {
    #[getter]
    fn opcode(&self) -> u8 {
        self.opcode as u8
    }

    #[getter]
    fn payload<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.payload_of(py))
    }

    #[getter]
    fn plain(&self, py: Python<'_>) -> Py<PyBytes> {
        self.plain.clone_ref(py)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let kind = if self.opcode == Opcode::Text { "text" } else { "binary" };
        format!("<Frame {kind}, {} B>", self.payload_of(py).len())
    }
}

/// A whole frame as a Python object, and the length of its header.
fn frame_bytes(py: Python<'_>, opcode: Opcode, rsv1: bool, payload: &[u8]) -> PyResult<(Py<PyBytes>, usize)> {
    let mut header = [0; 10];
    let header_len = encode_header(opcode, true, rsv1, payload.len() as u64, &mut header);
    let bytes = PyBytes::new_with(py, header_len + payload.len(), |out| {
        out[..header_len].copy_from_slice(&header[..header_len]);
        out[header_len..].copy_from_slice(payload);
        Ok(())
    })?;
    Ok((bytes.unbind(), header_len))
}

/// Runs `work` on what a bytes-like object holds now; only `bytes` is sure to stay as it is, the others are copied.
fn with_bytes<T>(
    object: &Bound<'_, PyAny>,
    method: &str,
    wanted: &str,
    work: impl FnOnce(&[u8]) -> PyResult<T>,
) -> PyResult<T> {
    if let Ok(bytes) = object.cast::<PyBytes>() {
        return work(bytes.as_bytes());
    }
    let copied = PyBuffer::<u8>::get(object).and_then(|buffer| buffer.to_vec(object.py()));
    let Ok(copied) = copied else {
        let given = object.get_type().name()?;
        return Err(PyTypeError::new_err(format!("{method}() takes {wanted}, not {given}")));
    };
    work(&copied)
}

fn not_utf8(payload: &[u8]) -> PyErr {
    let at = std::str::from_utf8(payload).map_or_else(|error| error.valid_up_to(), str::len);
    let byte = payload.get(at).copied().unwrap_or_default();
    PyValueError::new_err(format!(
        "text of {} bytes is not UTF-8 at byte {at} (0x{byte:02x}); encode it, or send it with binary()",
        payload.len()
    ))
}
