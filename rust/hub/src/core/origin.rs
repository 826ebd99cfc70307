//! Whether the page that a request comes from may connect, and one line for the operator where it may not.

use super::ShardCore;
use crate::event::Event;
use crate::options::Auth;
use crate::origin::shown;
use realtime_protocol::handshake::Request;

/// Refused pages are told of at most once in this time; further ones are counted.
const LINE_MS: u64 = 1_000;

/// When a refused page was last told of.
#[derive(Debug, Default)]
pub(super) struct OriginLines {
    next_ms: u64,
    untold: u64,
}

impl ShardCore {
    /// Whether the page of the request may connect. Every `Origin` must be allowed: a browser sends one.
    pub(super) fn check_origin(&mut self, request: &Request<'_>, auth: Auth) -> bool {
        let named = |wanted: &'static str| request.headers().filter(move |(name, _)| name.eq_ignore_ascii_case(wanted));
        // By its name: a cookie that is not UTF-8 goes with the others.
        let by_cookie = auth == Auth::Hook && named("cookie").next().is_some();
        let rules = self.hub.identity_rules();
        let refused = named("origin")
            .map(|(_, value)| String::from_utf8_lossy(value))
            .find(|origin| !rules.origins.allows(origin, request.host(), by_cookie));
        let Some(origin) = refused else { return true };
        self.tell_of_origin(&origin, request.host().unwrap_or_default());
        false
    }

    fn tell_of_origin(&mut self, origin: &str, host: &str) {
        let lines = &mut self.doors.origin_lines;
        if self.now.mono_ms < lines.next_ms {
            lines.untold += 1;
            return;
        }
        lines.next_ms = self.now.mono_ms + LINE_MS;
        let others = match std::mem::take(&mut lines.untold) {
            0 => String::new(),
            count => format!("; {count} more since the last such line"),
        };
        let message = format!(
            "refused a connection from a page of origin {:?} to host {:?}: the origin is not in auth.origins; \
             add it there if the page is yours{others}",
            shown(origin),
            shown(host)
        );
        self.outputs.events.push(Event::Warned { message: message.into() });
    }
}
