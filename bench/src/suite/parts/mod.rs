//! The parts of the suite: each measures its cases on all ways, in turns.

pub(super) mod breakdown;
pub(super) mod data;
pub(super) mod metadata;
pub(super) mod rest;
pub(super) mod scaling;
pub(super) mod server;
pub(super) mod unlink;
pub(super) mod work;

use super::{Context, Part};
use crate::suite::record::{Case, Cases, Sample, Unit};
