//! What the benchmark ran on.

use serde_json::{Value, json};

/// A description for the JSON report.
pub(crate) fn describe() -> Value {
    let uname = rustix::system::uname();
    json!({
        "kernel": uname.release().to_string_lossy(),
        "architecture": uname.machine().to_string_lossy(),
        "cpu": cpu_model(),
        "cpus": cpus(),
        "memory_bytes": meminfo("MemTotal"),
        "finesse_version": env!("CARGO_PKG_VERSION"),
    })
}

/// The same in one line.
pub(crate) fn line() -> String {
    line_of(&describe())
}

/// A description in one line.
pub(crate) fn line_of(machine: &Value) -> String {
    let memory = machine["memory_bytes"].as_u64().unwrap_or(0) as f64 / f64::from(1 << 30);
    format!(
        "Linux {}, {} × {}, {memory:.1} GiB",
        machine["kernel"].as_str().unwrap_or("of some version"),
        machine["cpus"],
        machine["cpu"].as_str().unwrap_or("CPU")
    )
}

fn cpu_model() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// CPUs that this process may use.
pub(crate) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A field of /proc/meminfo, in bytes.
pub(crate) fn meminfo(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(value.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
