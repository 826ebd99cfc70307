//! Origins of pages: which may connect, compared as browsers write them (RFC 6454 §6.2).
//!
//! A browser writes scheme and host in lower case and leaves a default port out, so an entry of `auth.origins` is
//! brought to that form once, and one that no browser can send is refused. The shards and the HTTP API ask the same
//! rule. Called by `identity` and the bindings.

use std::collections::HashSet;
use std::net::Ipv6Addr;

/// Bytes of an origin that an error repeats.
const SHOWN_BYTES_MAX: usize = 200;

/// Which pages may connect.
#[derive(Debug, Default, Clone)]
pub struct OriginRule {
    listed: Option<HashSet<String>>,
}

impl OriginRule {
    /// Takes the entries of `auth.origins`; `None` looks at no origin where no cookie comes.
    ///
    /// # Errors
    /// One line that names the entry and what to write instead.
    pub fn new<S: AsRef<str>>(entries: Option<&[S]>) -> Result<Self, String> {
        let listed = entries.map(|all| all.iter().map(|entry| canonical(entry.as_ref())).collect()).transpose()?;
        Ok(Self { listed })
    }

    /// The entries as browsers write them, sorted; `None` where none were given.
    #[must_use]
    pub fn listed(&self) -> Option<Vec<String>> {
        let mut all: Vec<String> = self.listed.as_ref()?.iter().cloned().collect();
        all.sort_unstable();
        Some(all)
    }

    /// Whether a page of `origin` may connect to `host`. Where a cookie may say who somebody is, any page's script
    /// would be let in as them, so the page must be listed, or be of the very host that it connects to.
    #[must_use]
    pub fn allows(&self, origin: &str, host: Option<&str>, by_cookie: bool) -> bool {
        let page = canonical(origin).ok();
        let is_listed = self.listed.as_ref().map(|all| page.as_ref().is_some_and(|page| all.contains(page)));
        match is_listed {
            Some(true) => true,
            None if !by_cookie => true,
            _ => by_cookie && page.zip(host).is_some_and(|(page, host)| is_of_host(&page, host)),
        }
    }
}

/// An origin as browsers write it: lower case, without a default port and without a slash at its end.
///
/// # Errors
/// One line that names the text and what to write instead, where no page can have this origin.
pub fn canonical(text: &str) -> Result<String, String> {
    let fault = |what: &str| Err(format!("origin {:?} {what}", shown(text)));
    if text == "*" {
        return fault("matches no page; list each origin, or leave auth.origins out to take tokens from every page");
    }
    if text.eq_ignore_ascii_case("null") {
        return fault("is that of every sandboxed page; serve the page over http or https and list its origin");
    }
    if text.contains('*') {
        return fault("has a wildcard, which matches no page; list each origin");
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return fault("has no scheme; write it as https://app.example");
    };
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if !is_scheme || authority.is_empty() {
        return fault("is not scheme://host; write it as https://app.example");
    }
    if !authority.is_ascii() {
        return fault("has letters outside of ASCII, which browsers do not send; write the host in its xn-- form");
    }
    if authority.bytes().any(|byte| byte <= b' ' || byte == 0x7f || b"/\\?#@,".contains(&byte)) {
        return fault("has more than scheme, host and port; write it as https://app.example");
    }
    let scheme = scheme.to_ascii_lowercase();
    let Some((host, port)) = host_and_port(authority) else {
        return fault("has no host or a wrong port; write it as https://app.example:8443");
    };
    Ok(match port {
        Some(port) if default_port(&scheme) != Some(port) => format!("{scheme}://{host}:{port}"),
        _ => format!("{scheme}://{host}"),
    })
}

/// Host in lower case, and the port where there is one.
fn host_and_port(authority: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            let address: Ipv6Addr = address.parse().ok()?;
            (format!("[{address}]"), if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host.to_ascii_lowercase(), Some(port)),
            None => (authority.to_ascii_lowercase(), None),
        },
    };
    if host.is_empty() {
        return None;
    }
    let is_number = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match port {
        None => Some((host, None)),
        Some(port) if is_number(port) => Some((host, Some(port.parse().ok().filter(|&port| port > 0)?))),
        Some(_) => None,
    }
}

/// Whether a canonical origin is that of the server which a request names as its `Host`.
fn is_of_host(page: &str, host: &str) -> bool {
    let Some((scheme, _)) = page.split_once("://") else { return false };
    canonical(&format!("{scheme}://{host}")).is_ok_and(|own| own == page) && !host.ends_with('/')
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

/// The beginning of a text that came from outside.
pub fn shown(text: &str) -> &str {
    let ends = text.char_indices().map(|(at, letter)| at + letter.len_utf8());
    &text[..ends.take_while(|&end| end <= SHOWN_BYTES_MAX).last().unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_taken_as_browsers_write_it() {
        for (entry, expected) in [
            ("https://a.example", "https://a.example"),
            ("https://A.Example/", "https://a.example"),
            ("HTTPS://a.example:443", "https://a.example"),
            ("http://a.example:80/", "http://a.example"),
            ("http://a.example:443", "http://a.example:443"),
            ("http://a.example:08080", "http://a.example:8080"),
            ("http://[0:0::1]:80", "http://[::1]"),
            ("http://[::1]:3001", "http://[::1]:3001"),
            ("capacitor://localhost", "capacitor://localhost"),
        ] {
            assert_eq!(canonical(entry).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn an_entry_that_no_page_can_have_is_refused_by_name() {
        for entry in [
            "*",
            "null",
            "https://*.example",
            "a.example",
            "localhost:3000",
            "https://",
            "https:///",
            "://a",
            "1://a",
            "https://a.example/app",
            "https://a.example?x",
            "https://u@a.example",
            "https://a .example",
            "https://bücher.example",
            "https://a.example:",
            "https://a.example:0",
            "https://a.example:65536",
            "https://a.example:+1",
            "https://[::1",
            "https://[a.example]",
            "https://::1",
            "https://a,b",
            "",
        ] {
            let refused = canonical(entry).unwrap_err();
            assert!(refused.starts_with(&format!("origin {entry:?} ")), "{refused}");
        }
    }

    #[test]
    fn a_page_connects_by_cookie_only_where_it_is_listed_or_at_home() {
        let open = OriginRule::default();
        let listed = OriginRule::new(Some(&["https://app.example:443/"])).unwrap();
        for (origin, by_cookie, in_open, in_listed) in [
            ("https://app.example", false, true, true),
            ("https://evil.example", false, true, false),
            ("https://edge.example:3002", false, true, false),
            ("null", false, true, false),
            ("https://app.example", true, false, true),
            ("https://evil.example", true, false, false),
            ("https://Edge.example:3002", true, true, true),
            ("https://edge.example", true, false, false),
            ("null", true, false, false),
            ("", true, false, false),
        ] {
            let host = Some("edge.example:3002");
            assert_eq!(open.allows(origin, host, by_cookie), in_open, "{origin} {by_cookie}");
            assert_eq!(listed.allows(origin, host, by_cookie), in_listed, "{origin} {by_cookie}");
        }
        assert!(!open.allows("null", None, true));
    }

    #[test]
    fn a_default_port_is_the_same_origin() {
        let rule = OriginRule::default();
        for (origin, host, expected) in [
            ("http://h", "h:80", true),
            ("http://h:80", "h", true),
            ("https://h", "h:443", true),
            ("https://h", "H", true),
            ("http://h", "h:443", false),
            ("https://h", "h:80", false),
            ("http://h:3001", "h", false),
            ("http://h", "", false),
            ("http://h", "h/", false),
            ("http://h", "u@h", false),
            ("http://[::1]", "[::1]:80", true),
        ] {
            assert_eq!(rule.allows(origin, Some(host), true), expected, "{origin} to {host:?}");
        }
    }
}
