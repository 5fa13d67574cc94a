//! Where a TURN server's messages begin and end in a stream, and what they are for.

use crate::core::is_control;

/// Length of ChannelData's header (RFC 8656 12.4).
pub const CHANNEL_HEADER: usize = 4;
const STUN_HEADER: usize = 20;

/// What a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// For the agent: a message of the server, or a peer's control datagram in ChannelData.
    Control(&'a [u8]),
    /// For WireGuard, from the peer of this channel.
    Data(u16, &'a [u8]),
    /// Nobody's.
    Other,
}

/// Sorts one whole message, padded or not.
pub fn sort(bytes: &[u8]) -> Frame<'_> {
    let Some(([c0, c1, l0, l1], rest)) = bytes.split_first_chunk() else {
        return Frame::Other;
    };
    let length = usize::from(u16::from_be_bytes([*l0, *l1]));
    match c0 & 0xc0 {
        0x00 => Frame::Control(bytes),
        0x40 => match rest.get(..length) {
            Some(content) if is_control(content) => {
                Frame::Control(&bytes[..CHANNEL_HEADER + length])
            }
            Some(content) => Frame::Data(u16::from_be_bytes([*c0, *c1]), content),
            None => Frame::Other,
        },
        _ => Frame::Other,
    }
}

/// Not what a TURN server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Garbage;

/// Length of the message that a stream goes on with, padding included; `None` until enough of it is there.
pub fn length(stream: &[u8]) -> Result<Option<usize>, Garbage> {
    let Some([first, _, l0, l1]) = stream.first_chunk() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([*l0, *l1]));
    match first & 0xc0 {
        0x00 => Ok(Some(STUN_HEADER + length)),
        0x40 => Ok(Some((CHANNEL_HEADER + length).next_multiple_of(4))),
        _ => Err(Garbage),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stun() -> Vec<u8> {
        let mut bytes = vec![0; STUN_HEADER];
        bytes[..2].copy_from_slice(&[0x01, 0x01]);
        bytes[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
        bytes
    }

    fn channel(content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x40, 0x07, 0, content.len() as u8];
        bytes.extend(content);
        bytes
    }

    #[test]
    fn probes_are_for_the_agent_and_everything_else_is_for_wireguard() {
        let probe = channel(&stun());
        assert_eq!(sort(&probe), Frame::Control(&probe));
        let padded = [channel(b"data1").as_slice(), &[0; 3]].concat();
        assert_eq!(sort(&padded), Frame::Data(0x4007, b"data1"));
        assert_eq!(sort(&stun()), Frame::Control(&stun()));
        assert_eq!(sort(&channel(b"data1")[..6]), Frame::Other);
        assert_eq!(sort(b"\xffdata"), Frame::Other);
        assert_eq!(sort(b"abc"), Frame::Other);
    }

    #[test]
    fn a_stream_is_cut_where_messages_end() {
        let stream = [channel(b"data1").as_slice(), &[0; 3], &stun()].concat();
        assert_eq!(length(&stream), Ok(Some(12)));
        assert_eq!(length(&stream[12..]), Ok(Some(STUN_HEADER)));
        assert_eq!(length(&stream[..3]), Ok(None));
        assert_eq!(length(&[0x80, 0, 0, 0]), Err(Garbage));
    }
}
