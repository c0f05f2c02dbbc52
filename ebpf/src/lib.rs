//! In-kernel help for programs that are not preloaded: BPF programs and their loader. It holds none yet; the rest of the
//! workspace works without it.
