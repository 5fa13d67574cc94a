//! A client for the control socket: one HTTP/1.1 request a connection, bounded in time and size.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api;

/// A status of 5,000 peers is about 4 MiB.
const ANSWER_MAX: u64 = 64 << 20;
/// A little longer than the agent itself waits.
const ANSWER_WITHIN: Duration = Duration::from_secs(65);

/// The agent behind a socket.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Nothing is opened yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Does an agent answer?
    pub fn alive(&self) -> bool {
        UnixStream::connect(&self.socket).is_ok()
    }

    /// `GET path`.
    pub fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A> {
        self.request("GET", path, &[])
    }

    /// `GET path`, where the answer is text.
    pub fn text(&self, path: &str) -> Result<String> {
        let body = self.exchange("GET", path, &[])?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// `POST path` with a JSON body.
    pub fn post<A: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<A> {
        self.request("POST", path, &serde_json::to_vec(body)?)
    }

    fn request<A: DeserializeOwned>(&self, method: &str, path: &str, body: &[u8]) -> Result<A> {
        let answer = self.exchange(method, path, body)?;
        serde_json::from_slice(&answer)
            .map_err(|error| anyhow!("cannot understand the agent's answer: {error}; are agent and command of one version?"))
    }

    /// The body of an answer that is no error.
    fn exchange(&self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>> {
        let mut stream = self.connect()?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: farspan\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let lost = |error: std::io::Error| {
            if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) {
                anyhow!(
                    "the agent on {} gave no answer within a minute; see its log (journalctl -u farspan)",
                    self.socket.display()
                )
            } else {
                anyhow!(
                    "the agent on {} closed the connection: {error}; see its log (journalctl -u farspan)",
                    self.socket.display()
                )
            }
        };
        stream.set_read_timeout(Some(ANSWER_WITHIN)).map_err(lost)?;
        stream
            .set_write_timeout(Some(ANSWER_WITHIN))
            .map_err(lost)?;
        // At once: an agent that ends with a part of the request unread resets the connection, answer and all.
        let request = [head.as_bytes(), body].concat();
        stream.write_all(&request).map_err(lost)?;
        let mut answer = Vec::new();
        stream
            .take(ANSWER_MAX)
            .read_to_end(&mut answer)
            .map_err(lost)?;
        let Some((status, body)) = parse(&answer) else {
            bail!(
                "what answers on {} is not a farspan agent; give the right --socket",
                self.socket.display()
            );
        };
        if status != 200 {
            let sentence = serde_json::from_slice::<api::Error>(body).map_or_else(
                |_| format!("the agent refused the request with HTTP status {status}; are agent and command of one version?"),
                |answer| answer.error,
            );
            bail!("{sentence}");
        }
        Ok(body.to_vec())
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "kinds of I/O errors are an open set"
    )]
    fn connect(&self) -> Result<UnixStream> {
        UnixStream::connect(&self.socket).map_err(|error| {
            let socket = self.socket.display();
            match error.kind() {
                ErrorKind::PermissionDenied => {
                    anyhow!("cannot open {socket}: only root may talk to the agent; use sudo")
                }
                ErrorKind::NotFound => anyhow!(
                    "no agent runs here: {socket} does not exist; start it with `sudo farspan up`, or name another agent's --socket or --interface"
                ),
                ErrorKind::ConnectionRefused => anyhow!(
                    "no agent runs here: nobody answers on {socket}; start it with `sudo farspan up`"
                ),
                _ => anyhow!("cannot open {socket}: {error}"),
            }
        })
    }
}

/// Status and body of an answer that the server ended by closing.
fn parse(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((status, &answer[end + 4..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart() {
        assert_eq!(
            parse(b"HTTP/1.1 200 OK\r\na: b\r\n\r\n{}"),
            Some((200, &b"{}"[..]))
        );
        for wrong in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\n",
            b"SSH-2.0\r\n\r\n",
            b"HTTP/1.1 x\r\n\r\n",
            b"\xff\r\n\r\n",
        ] {
            assert_eq!(parse(wrong), None);
        }
    }

    #[test]
    fn no_agent_and_no_rights_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new(folder.path().join("none.sock"));
        let error = client.get::<api::Done>("/status").unwrap_err().to_string();
        assert!(error.contains("sudo farspan up"), "{error}");
        assert!(!client.alive());
    }
}
