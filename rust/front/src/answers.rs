//! What the front answers by itself: problem details (RFC 9457), as every error of the HTTP API.

/// A refusal: its status, its code, and what to do, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) status: u16,
    pub(crate) code: &'static str,
    pub(crate) detail: String,
}

impl Problem {
    pub(crate) fn malformed(detail: &str) -> Self {
        Self { status: 400, code: "invalid_message", detail: detail.into() }
    }

    pub(crate) fn overloaded(detail: String) -> Self {
        Self { status: 503, code: "overloaded", detail }
    }

    pub(crate) fn too_often(detail: String) -> Self {
        Self { status: 429, code: "rate_limited", detail }
    }

    pub(crate) fn too_slow(detail: String) -> Self {
        Self { status: 408, code: "timeout", detail }
    }

    /// The whole answer.
    pub(crate) fn answer(&self, is_kept: bool, is_head: bool) -> Vec<u8> {
        let title = phrase(self.status);
        let detail = serde_json::Value::from(self.detail.as_str());
        let (retry, retry_ms) =
            if matches!(self.status, 429 | 503) { ("retry-after: 1\r\n", ",\"retryAfterMs\":1000") } else { ("", "") };
        let body = format!(
            "{{\"type\":\"about:blank\",\"title\":\"{title}\",\"status\":{},\"detail\":{detail},\"code\":\"{}\"{retry_ms}}}",
            self.status, self.code
        );
        let connection = if is_kept { "keep-alive" } else { "close" };
        let length = body.len();
        format!(
            "HTTP/1.1 {} {title}\r\ncontent-type: application/problem+json\r\ncontent-length: {length}\r\n\
             cache-control: no-store\r\nx-content-type-options: nosniff\r\n{retry}connection: {connection}\r\n\r\n{}",
            self.status,
            if is_head { "" } else { &body },
        )
        .into_bytes()
    }
}

const fn phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        408 => "Request Timeout",
        414 => "URI Too Long",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_the_front_is_a_problem_of_the_api() {
        let problem = Problem::overloaded("too \"many\"".into());
        let answer = String::from_utf8(problem.answer(true, false)).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{head}");
        assert!(head.contains("\r\nretry-after: 1\r\nconnection: keep-alive"), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())));
        let told: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&told["code"], &told["detail"]), (&"overloaded".into(), &"too \"many\"".into()));
        assert_eq!(told["retryAfterMs"], 1_000);
        assert!(problem.answer(false, true).ends_with(b"connection: close\r\n\r\n"));
    }
}
