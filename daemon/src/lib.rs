//! The `finesse` library.
