//! What the daemon and the preload library agree on: the layout of the shared memory, the frames that
//! travel through it, how each side waits for the other, and the handshake that sets it all up.
//!
//! There is no policy here. Which call takes which road is decided in `finesse-preload`; what a request
//! means is decided by the engine in `finesse`.
//!
//! | module | holds |
//! | --- | --- |
//! | [`frame`] | operations, requests, replies, attributes, reasons to fall back |
//! | [`ring`] | the state machine of slots, submission bitmap and doorbell, generic over its atomics |
//! | [`layout`] | where everything lies inside a client's segment, checked at compile time |
//! | [`segment`] | the sealed memfd and its mapping: the only `unsafe` of this crate |
//! | [`handshake`] | control messages over the Unix socket, with descriptors |
//! | [`client`] | a client's end: connect, call, wait |
//! | [`jumps`] | which calls a thread has left by a jump |
//! | [`environment`] | what a program hands to the programs it starts |
//! | [`counters`] | what a client counts, for `finesse status` |
//! | [`table`] | the metadata table of a mount: its layout, how it is written, and the client's walk |
//! | [`status`] | asking a daemon for all of that |

#![deny(unsafe_code)]

pub mod client;
pub mod counters;
pub mod environment;
pub mod frame;
pub mod handshake;
pub mod jumps;
pub mod layout;
pub mod ring;
pub mod segment;
pub mod status;
pub mod table;
