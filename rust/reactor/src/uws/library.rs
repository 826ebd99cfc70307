//! uWebSockets' C functions, by address, and what its names stand for here.
//!
//! The library is loaded by whoever drives the engine. Every socket, response, request and context is a pointer of the
//! library's that nothing here looks into. The first argument of most functions says whether there is TLS: never.

use crate::error::StartError;
use std::ffi::{c_char, c_int, c_void};

/// Sockets, responses, requests, contexts and loops of the library.
pub(crate) type Pointer = *mut c_void;
pub(crate) type Text = *const c_char;

/// `us_poll_events`: the socket is read.
pub(crate) const POLL_READABLE: c_int = 1;
/// `uv_run` looks once and does not wait.
pub(crate) const RUN_NOWAIT: c_int = 2;

macro_rules! library {
    ($($field:ident: $name:literal ($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// Functions that the engine calls.
        pub const FUNCTIONS: &[&str] = &[$($name),*];

        /// The functions of one library, which stays loaded.
        #[derive(Clone, Copy)]
        pub(crate) struct Library {
            $(pub(crate) $field: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Library {
            /// Takes the functions at their addresses.
            ///
            /// # Safety
            /// The addresses are those of the functions with these names.
            ///
            /// # Errors
            /// Code `options` with the name of the function that is not there.
            pub(crate) unsafe fn at(address_of: impl Fn(&str) -> Option<usize>) -> Result<Self, StartError> {
                Ok(Self {
                    $($field: {
                        let address = address_of($name).filter(|address| *address != 0);
                        let missing = || StartError::options(concat!("the library has no function ", $name));
                        // SAFETY: the caller's word; no address is 0.
                        unsafe {
                            std::mem::transmute::<usize, unsafe extern "C" fn($($argument),*) $(-> $result)?>(
                                address.ok_or_else(missing)?,
                            )
                        }
                    },)*
                })
            }
        }
    };
}

library! {
    run_loop: "uv_run" (Pointer, c_int) -> c_int;
    poll_events: "us_poll_events" (Pointer) -> c_int;
    poll_change: "us_poll_change" (Pointer, Pointer, c_int);
    url: "uws_req_get_full_url" (Pointer, *mut Text) -> usize;
    method: "uws_req_get_case_sensitive_method" (Pointer, *mut Text) -> usize;
    for_each_header: "uws_req_for_each_header" (Pointer, OnHeader, Pointer);
    address: "uws_res_get_remote_address" (c_int, Pointer, *mut Text) -> usize;
    on_aborted: "uws_res_on_aborted" (c_int, Pointer, OnAborted, Pointer);
    upgrade: "uws_res_upgrade" (c_int, Pointer, Pointer, Text, usize, Text, usize, Text, usize, Pointer);
    write_status: "uws_res_write_status" (c_int, Pointer, Text, usize);
    write_header: "uws_res_write_header" (c_int, Pointer, Text, usize, Text, usize);
    end_response: "uws_res_end" (c_int, Pointer, Text, usize, bool);
    close_response: "uws_res_close" (c_int, Pointer);
    user_data: "uws_ws_get_user_data" (c_int, Pointer) -> Pointer;
    cork: "uws_ws_cork" (c_int, Pointer, OnCorked, Pointer);
    send: "uws_ws_send_with_options" (c_int, Pointer, Text, usize, c_int, bool, bool) -> c_int;
    buffered: "uws_ws_get_buffered_amount" (c_int, Pointer) -> c_int;
    end: "uws_ws_end" (c_int, Pointer, c_int, Text, usize);
    close: "uws_ws_close" (c_int, Pointer);
}

/// Name, its length, value, its length, and what was given.
pub(crate) type OnHeader = unsafe extern "C" fn(Text, usize, Text, usize, Pointer);
/// Response, and what was given.
pub(crate) type OnAborted = unsafe extern "C" fn(Pointer, Pointer);
pub(crate) type OnCorked = unsafe extern "C" fn(Pointer);

impl Library {
    /// Runs `work` while what it sends to a socket is gathered for one write.
    ///
    /// # Safety
    /// The socket is open.
    pub(crate) unsafe fn with_corked(&self, socket: Pointer, work: &mut dyn FnMut()) {
        unsafe extern "C" fn run(work: Pointer) {
            // SAFETY: the pointer that is handed over below; it is called before that returns.
            (unsafe { &mut *work.cast::<&mut dyn FnMut()>() })();
        }
        let mut work = work;
        // SAFETY: the caller's word; `work` lives through the call.
        unsafe { (self.cork)(0, socket, run, (&raw mut work).cast()) };
    }

    /// Answers 503 and closes.
    ///
    /// # Safety
    /// The response is not answered and not aborted.
    pub(crate) unsafe fn refuse(&self, response: Pointer) {
        let headers = [("Retry-After", "1"), ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")];
        // SAFETY: the caller's word.
        unsafe { self.answer(response, "503 Service Unavailable", headers.into_iter(), b"") };
    }

    /// Answers and closes.
    ///
    /// # Safety
    /// The response is not answered and not aborted.
    pub(crate) unsafe fn answer<'a>(
        &self,
        response: Pointer,
        status: &str,
        headers: impl Iterator<Item = (&'a str, &'a str)>,
        body: &[u8],
    ) {
        // SAFETY: the caller's word; the library copies what it does not send.
        unsafe {
            (self.write_status)(0, response, status.as_ptr().cast(), status.len());
            for (name, value) in headers {
                let (name, value) = (name.as_bytes(), value.as_bytes());
                (self.write_header)(0, response, name.as_ptr().cast(), name.len(), value.as_ptr().cast(), value.len());
            }
            (self.end_response)(0, response, body.as_ptr().cast(), body.len(), true);
        }
    }
}

/// The bytes of a text of the library's.
///
/// # Safety
/// There are `length` bytes at `text`, for as long as what is returned is used.
pub(crate) unsafe fn bytes<'a>(text: Text, length: usize) -> &'a [u8] {
    if length == 0 {
        return &[];
    }
    // SAFETY: the caller's word.
    unsafe { std::slice::from_raw_parts(text.cast(), length) }
}
