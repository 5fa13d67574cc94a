//! The two ways to speak netlink: [`Channel`], a synchronous exchange for generic netlink and nfnetlink
//! (which wants several messages in one datagram), and [`Routing`], rtnetlink's connection.

use std::io;

use futures::{Stream, StreamExt as _};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{AsyncSocket as _, Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};

use crate::HostError;

/// Larger than any datagram the kernel builds for a dump (32 KiB since Linux 4.9).
const DATAGRAM: usize = 64 * 1024;
/// A netlink message's header (RFC 3549 2.3.2), bytes.
pub(crate) const HEADER: usize = 16;
/// The kernel saw its tables change while it dumped them (`NLM_F_DUMP_INTR`).
const DUMP_INTERRUPTED: u16 = 0x10;

/// One netlink socket, in the namespace of the thread that opened it.
///
/// The kernel works off a request inside the system call that sends it, so the answers are there to be
/// read without waiting when that call returns.
pub(crate) struct Channel {
    socket: Socket,
    port: u32,
    sequence: u32,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Channel({})", self.port)
    }
}

impl Channel {
    /// Opens a socket of a netlink protocol (`NETLINK_*`).
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        let port = socket.bind_auto()?.port_number();
        Ok(Self {
            socket,
            port,
            sequence: 0,
        })
    }

    /// Raises the number of bytes that may be sent at once.
    pub(crate) fn send_up_to(&self, bytes: usize) -> io::Result<()> {
        setsockopt(&self.socket, sockopt::SndBufForce, &bytes).map_err(io::Error::from)
    }

    /// The socket alone, for what the kernel tells unasked.
    pub(crate) fn into_socket(self) -> Socket {
        self.socket
    }

    /// The socket's own netlink address, by which its doings are told from those of others.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Sends one message and waits for it to be carried out.
    pub(crate) fn request<T>(&mut self, message: T, flags: u16) -> io::Result<Vec<T>>
    where
        T: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<T>>,
    {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        self.exchange(vec![message])
    }

    /// Reads everything of a kind; repeated where the tables changed meanwhile.
    pub(crate) fn dump<T>(&mut self, message: &T) -> io::Result<Vec<T>>
    where
        T: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<T>> + Clone,
    {
        let mut attempt = 0;
        loop {
            let mut request = NetlinkMessage::from(message.clone());
            request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            attempt += 1;
            match self.exchange(vec![request]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted && attempt < 8 => {}
                result => return result,
            }
        }
    }

    /// Sends messages in one datagram and gathers what comes back. The first error among the answers is the result.
    pub(crate) fn exchange<T>(&mut self, messages: Vec<NetlinkMessage<T>>) -> io::Result<Vec<T>>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut datagram = Vec::new();
        for mut message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            message.header.sequence_number = self.sequence;
            message.finalize();
            let start = datagram.len();
            datagram.resize(start + message.buffer_len(), 0);
            message.serialize(&mut datagram[start..]);
        }
        self.socket.send_to(&datagram, &SocketAddr::new(0, 0), 0)?;
        let mut answers = Answers::default();
        let mut buffer = Vec::with_capacity(DATAGRAM);
        loop {
            buffer.clear();
            match self.socket.recv_from(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) => answers.read(&buffer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        answers.finish()
    }
}

/// A message as it is.
#[derive(Debug, Clone)]
pub(crate) struct Raw {
    kind: u16,
    pub(crate) body: Vec<u8>,
}

impl Raw {
    /// A request, to be answered by messages as they are.
    pub(crate) fn of(request: &impl NetlinkSerializable) -> Self {
        let mut body = vec![0; request.buffer_len()];
        request.serialize(&mut body);
        let kind = request.message_type();
        Self { kind, body }
    }
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Raw {
    type Error = std::convert::Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self {
            kind: header.message_type,
            body: payload.to_vec(),
        })
    }
}

impl From<Raw> for NetlinkPayload<Raw> {
    fn from(raw: Raw) -> Self {
        Self::InnerMessage(raw)
    }
}

struct Answers<T> {
    messages: Vec<T>,
    error: Option<io::Error>,
    any: bool,
    interrupted: bool,
}

impl<T> Default for Answers<T> {
    fn default() -> Self {
        Self {
            messages: Vec::new(),
            error: None,
            any: false,
            interrupted: false,
        }
    }
}

impl<T: NetlinkDeserializable> Answers<T> {
    fn read(&mut self, datagram: &[u8]) {
        let mut rest = datagram;
        while let Some([a, b, c, d]) = rest.first_chunk() {
            let length = u32::from_ne_bytes([*a, *b, *c, *d]) as usize;
            let Some(bytes) = rest.get(..length).filter(|bytes| bytes.len() >= HEADER) else {
                return;
            };
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
            self.any = true;
            match NetlinkMessage::<T>::deserialize(bytes) {
                Ok(message) => self.message(message),
                // Somebody else's rule or link of a kind that is newer than the parser.
                Err(error) => tracing::debug!(%error, "Skipped a netlink message"),
            }
        }
    }

    fn message(&mut self, message: NetlinkMessage<T>) {
        self.interrupted |= message.header.flags & DUMP_INTERRUPTED != 0;
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => self.messages.push(inner),
            NetlinkPayload::Error(answer) if answer.code.is_some() => {
                let code = answer.raw_code().saturating_abs();
                self.error
                    .get_or_insert_with(|| io::Error::from_raw_os_error(code));
            }
            NetlinkPayload::Done(done) if done.code != 0 => {
                let code = done.code.saturating_abs();
                self.error
                    .get_or_insert_with(|| io::Error::from_raw_os_error(code));
            }
            _ => {}
        }
    }

    fn finish(self) -> io::Result<Vec<T>> {
        if let Some(error) = self.error {
            return Err(error);
        }
        if self.interrupted {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if !self.any {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the kernel gave no answer",
            ));
        }
        Ok(self.messages)
    }
}

/// rtnetlink's connection, and how often it was used to change something.
#[derive(Debug, Clone)]
pub(crate) struct Routing {
    pub(crate) handle: rtnetlink::Handle,
    /// The connection's netlink address.
    pub(crate) port: u32,
    /// Requests that change something, since the connection was opened.
    pub(crate) changes: u64,
}

impl Routing {
    /// Opens the connection and drives it by a task that ends when the last handle is dropped.
    pub(crate) fn open() -> Result<Self, HostError> {
        let opened = rtnetlink::new_connection_with_strict_check().and_then(
            |(mut connection, handle, _)| {
                let port = connection
                    .socket_mut()
                    .socket_mut()
                    .bind_auto()?
                    .port_number();
                Ok((connection, handle, port))
            },
        );
        let (connection, handle, port) =
            opened.map_err(|error| HostError::from_io("open a netlink connection", &error))?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            port,
            changes: 0,
        })
    }

    /// Counts a change and names it in its error.
    pub(crate) fn changed(
        &mut self,
        tried: impl Into<String>,
        result: Result<(), rtnetlink::Error>,
    ) -> Result<(), HostError> {
        self.changes += 1;
        result.map_err(|error| HostError::from_rtnetlink(tried, error))
    }
}

/// Gathers a dump. A table that does not exist is empty.
pub(crate) async fn gather<T>(
    tried: &str,
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, HostError> {
    let mut items = Vec::new();
    let mut stream = std::pin::pin!(stream);
    while let Some(item) = stream.next().await {
        match item {
            Ok(item) => items.push(item),
            Err(error) if is_absent(&error) => break,
            Err(error) => return Err(HostError::from_rtnetlink(tried, error)),
        }
    }
    Ok(items)
}

/// Is this the answer for something that is not there (device, address, route, rule, table, family)?
pub(crate) fn is_absent(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message)
        if matches!(-message.raw_code(), libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT))
}

#[cfg(test)]
mod tests {
    use netlink_packet_netfilter::NetfilterMessage;

    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    fn read(datagram: &[u8]) -> io::Result<Vec<NetfilterMessage>> {
        let mut answers = Answers::default();
        answers.read(datagram);
        answers.finish()
    }

    #[test]
    fn the_first_error_of_a_batch_is_the_answer() {
        let acknowledged = message(2, &[0; 20]);
        let refused = |errno: i32| message(2, &[&(-errno).to_ne_bytes()[..], &[0; 16]].concat());
        assert_eq!(read(&acknowledged).unwrap(), []);
        let batch = [acknowledged, refused(libc::ENOENT), refused(libc::EPERM)].concat();
        assert_eq!(read(&batch).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert!(read(&[]).is_err(), "no answer is no success");
    }

    #[test]
    fn no_bytes_of_a_datagram_panic_or_loop() {
        let whole = [
            message(0x0a03, &[2, 0, 0, 0, 8, 0, 1, 0, 65, 0, 0, 0]),
            message(3, &[]),
        ]
        .concat();
        assert_eq!(read(&whole).unwrap().len(), 1);
        for end in 0..whole.len() {
            let _ = read(&whole[..end]);
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut garbled = whole.clone();
                garbled[at] ^= 1 << bit;
                let _ = read(&garbled);
            }
        }
    }
}
