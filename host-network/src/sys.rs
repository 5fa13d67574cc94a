//! System calls that no safe crate wraps.

#![expect(unsafe_code, reason = "adjtimex has no safe wrapper")]

/// `STA_UNSYNC` of `adjtimex`(2).
const UNSYNCHRONISED: libc::c_int = 0x40;
/// `TIME_ERROR` of `adjtimex`(2).
const TIME_ERROR: libc::c_int = 5;

/// Does the kernel say that its clock is kept by a time source? Reading needs no privilege.
pub(crate) fn clock_synchronised() -> bool {
    // SAFETY: `timex` is plain old data of integers, for which all zero bits are valid.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live, exclusively borrowed `timex`; modes is 0, so nothing is set.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    state >= 0 && state != TIME_ERROR && timex.status & UNSYNCHRONISED == 0
}
