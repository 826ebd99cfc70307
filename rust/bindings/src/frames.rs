//! `FrameEncoder`, `Frame` and `Deflate`: a message as the bytes of one server frame (RFC 6455 §5.2, RFC 7692 §6), made
//! once for every receiver.
//!
//! For those who have their own transports and take from this package only the encoding. What is encoded is a Python
//! `bytes` from the start, so nothing is copied again on its way to a transport. The compressed form is made when it is
//! first asked for, and never again. Frames do not change: any thread may use them. No lock is waited for with the GIL
//! held, and each is held without it at most.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::{MutexExt, OnceLockExt};
use pyo3::types::{PyBytes, PyString};
use realtime_protocol::deflate::{Deflater, is_worth_sending};
use realtime_protocol::extensions::Deflate as Agreed;
use realtime_protocol::frame::{Opcode, encode_header};
use realtime_protocol::utf8;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// From here on other threads of Python run while a message is compressed: it takes some hundred microseconds.
const DETACHED_BYTES_MIN: usize = 16 << 10;

/// A larger buffer for compressed messages is given back after the message that needed it.
const SCRATCH_BYTES_KEPT: usize = 64 << 10;

/// Makes frames of messages.
#[pyclass(frozen, module = "realtime._engine")]
pub(crate) struct FrameEncoder {
    compressor: Option<Arc<Compressor>>,
}

#[pymethods]
impl FrameEncoder {
    #[new]
    #[pyo3(signature = (*, compression=true, level=6, threshold_bytes=256))]
    fn new(compression: bool, level: i64, threshold_bytes: i64) -> PyResult<Self> {
        if !(1..=9).contains(&level) {
            let message = format!("level={level} is not within 1 (quick) to 9 (small); compression=False turns it off");
            return Err(PyValueError::new_err(message));
        }
        let Ok(threshold_bytes) = usize::try_from(threshold_bytes) else {
            let message =
                format!("threshold_bytes={threshold_bytes} is below 0; give the shortest payload to compress");
            return Err(PyValueError::new_err(message));
        };
        let compressor = compression.then(|| Arc::new(Compressor::new(level as u8, threshold_bytes)));
        Ok(Self { compressor })
    }

    #[getter]
    fn compressions(&self) -> u64 {
        self.compressor.as_ref().map_or(0, |compressor| compressor.compressions.load(Ordering::Relaxed))
    }

    fn text(&self, text: &Bound<'_, PyAny>) -> PyResult<Frame> {
        if let Ok(text) = text.cast::<PyString>() {
            return self.frame(text.py(), Opcode::Text, text.to_str()?.as_bytes());
        }
        with_bytes(text, "text", "str or bytes-like of UTF-8", |payload| {
            if !utf8::is_valid(payload) {
                return Err(not_utf8(payload));
            }
            self.frame(text.py(), Opcode::Text, payload)
        })
    }

    fn binary(&self, payload: &Bound<'_, PyAny>) -> PyResult<Frame> {
        with_bytes(payload, "binary", "bytes-like", |bytes| self.frame(payload.py(), Opcode::Binary, bytes))
    }
}

impl FrameEncoder {
    fn frame(&self, py: Python<'_>, opcode: Opcode, payload: &[u8]) -> PyResult<Frame> {
        let (plain, header_len) = frame_bytes(py, opcode, false, payload)?;
        let compressor = self.compressor.as_ref().filter(|compressor| payload.len() >= compressor.threshold_bytes);
        Ok(Frame { opcode, header_len, plain, compressor: compressor.cloned(), deflated: OnceLock::new() })
    }
}

/// What the frames of an encoder are compressed with, one after the other.
struct Compressor {
    level: u8,
    threshold_bytes: usize,
    compressions: AtomicU64,
    scratch: Mutex<Option<Scratch>>,
}

/// The compressor and the payload that it makes; its memory is taken when the first message needs it.
struct Scratch {
    deflater: Deflater,
    out: Vec<u8>,
}

impl Compressor {
    fn new(level: u8, threshold_bytes: usize) -> Self {
        Self { level, threshold_bytes, compressions: AtomicU64::new(0), scratch: Mutex::new(None) }
    }

    /// The frame with its payload compressed; `None` where that is not worth it.
    fn frame(&self, py: Python<'_>, opcode: Opcode, payload: &[u8]) -> PyResult<Option<Py<PyBytes>>> {
        // Each use begins with a reset, so what another one left half done does no harm.
        let mut scratch = self.scratch.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        let Scratch { deflater, out } =
            scratch.get_or_insert_with(|| Scratch { deflater: Deflater::new(self.level), out: Vec::new() });
        out.clear();
        if payload.len() < DETACHED_BYTES_MIN {
            deflater.deflate(payload, out);
        } else {
            py.detach(|| deflater.deflate(payload, out));
        }
        self.compressions.fetch_add(1, Ordering::Relaxed);
        let is_worth = is_worth_sending(out.len(), payload.len());
        let frame = is_worth.then(|| frame_bytes(py, opcode, true, out)).transpose();
        if out.capacity() > SCRATCH_BYTES_KEPT {
            *out = Vec::new();
        }
        Ok(frame?.map(|(bytes, _)| bytes))
    }
}

/// One message, encoded.
#[pyclass(frozen, module = "realtime._engine")]
pub(crate) struct Frame {
    opcode: Opcode,
    header_len: usize,
    plain: Py<PyBytes>,
    /// `None` where the message stays plain for everybody.
    compressor: Option<Arc<Compressor>>,
    deflated: OnceLock<Option<Py<PyBytes>>>,
}

impl Frame {
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

    #[getter]
    fn deflated(&self, py: Python<'_>) -> Option<&Py<PyBytes>> {
        let compressor = self.compressor.as_ref()?;
        let make = || compressor.frame(py, self.opcode, self.payload_of(py));
        // Where there is no memory for it the message stays plain, which needs none.
        self.deflated.get_or_init_py_attached(py, || make().ok().flatten()).as_ref()
    }

    #[pyo3(signature = (window_bits=None))]
    fn wire(&self, py: Python<'_>, window_bits: Option<i64>) -> PyResult<Py<PyBytes>> {
        let Some(bits) = window_bits else {
            return Ok(self.plain(py));
        };
        if !(8..=15).contains(&bits) {
            let message =
                format!("window_bits={bits} is not within 8 to 15 (RFC 7692 7.1.2); None is for plain frames");
            return Err(PyValueError::new_err(message));
        }
        let agreed = Agreed { server_max_window_bits: Some(bits as u8), ..Agreed::default() };
        if !agreed.may_deflate(self.payload_of(py).len()) {
            return Ok(self.plain(py));
        }
        Ok(self.deflated(py).unwrap_or(&self.plain).clone_ref(py))
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let kind = if self.opcode == Opcode::Text { "text" } else { "binary" };
        format!("<Frame {kind}, {} B>", self.payload_of(py).len())
    }
}

/// What was agreed on with a client that offered permessage-deflate.
#[pyclass(frozen, module = "realtime._engine")]
pub(crate) struct Deflate(Agreed);

#[pymethods]
impl Deflate {
    #[staticmethod]
    fn negotiate(offers: &str) -> Option<Self> {
        Agreed::negotiate([offers]).map(Self)
    }

    #[getter]
    fn response(&self) -> String {
        self.0.response()
    }

    #[getter]
    fn window_bits(&self) -> u8 {
        self.0.server_max_window_bits.unwrap_or(15)
    }

    fn __repr__(&self) -> String {
        format!("<Deflate {}>", self.0.response())
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
