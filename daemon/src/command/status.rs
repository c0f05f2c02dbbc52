//! `finesse status`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use finesse::passthrough::leftovers;
use finesse_ipc::counters::Counts;
use finesse_ipc::handshake::{Operations, PolicyStatus, Requests, Saved, Walks};
use finesse_ipc::status::Report;
use serde_json::{Map, Value, json};

use super::mounts::{self, Found};
use super::{Failure, Outcome, print};

/// Show mounts, the programs that take the bypass on them, and what they did.
///
/// Every call of a preloaded program on a mount is either answered through shared memory or left to the
/// kernel; the latter are counted by reason.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  finesse status
  finesse status --json /mnt/data | jq '.[0].answered.stat'")]
pub(crate) struct Status {
    /// Only this mount.
    mountpoint: Option<PathBuf>,
    /// For machines: a list with one object per mount.
    #[arg(long)]
    json: bool,
}

impl Status {
    /// Runs the command.
    pub(crate) fn run(self) -> Outcome {
        let at = match &self.mountpoint {
            None => None,
            Some(path) => {
                let literal = mounts::resolve(path)?;
                Some(match mounts::at(&literal)? {
                    Some(_) => literal,
                    None => path.canonicalize().unwrap_or(literal),
                })
            }
        };
        // Another mount that hangs keeps nobody waiting.
        let found = mounts::ours(|entry| at.as_ref().is_none_or(|at| entry.mountpoint == *at))?;
        if let (Some(path), []) = (&self.mountpoint, &found[..]) {
            return Err(Failure::new(format!(
                "{}: not a Finesse mount; `finesse status` without an argument lists them",
                path.display()
            )));
        }
        let reports: Vec<_> = found.iter().map(Found::report).collect();
        for left in leftovers() {
            // Not in the list, which machines read.
            eprintln!(
                "{} unlinks in {} were acknowledged by a daemon that is gone: `finesse mount` of it or any `finesse umount` \
                 finishes them; to leave them undone, remove {}",
                grouped(left.unlinks),
                left.source.display(),
                left.journal.display()
            );
        }
        if self.json {
            let list: Vec<_> =
                found.iter().zip(&reports).map(|(mount, report)| to_json(mount, report)).collect();
            return print(&format!("{:#}\n", Value::Array(list)));
        }
        if found.is_empty() {
            return print("no Finesse mounts; make one with: finesse mount SOURCE MOUNTPOINT\n");
        }
        let text: Vec<_> = found.iter().zip(&reports).map(|(mount, report)| to_text(mount, report)).collect();
        print(&text.join("\n"))?;
        let unanswered = reports.iter().filter(|report| report.is_err()).count();
        if unanswered == 0 {
            return Ok(());
        }
        Err(Failure::new(format!("{unanswered} of {} mounts did not report", found.len())))
    }
}

fn named<N: Into<String>>(counts: impl Iterator<Item = (N, u64)>) -> Map<String, Value> {
    counts.map(|(name, count)| (name.into(), count.into())).collect()
}

fn counts_json(counts: &Counts) -> [Value; 3] {
    let answered = named(counts.served().map(|(op, count)| (op.name(), count)));
    let from_table = named(counts.looked_up().map(|(op, count)| (op.name(), count)));
    let to_kernel = named(counts.fell_back().map(|(reason, count)| (reason.name(), count)));
    [answered.into(), from_table.into(), to_kernel.into()]
}

fn operations_json(operations: &Operations) -> Value {
    named(operations.iter().map(|(name, count)| (name.as_str(), *count))).into()
}

/// Programs on the kernel road, if anybody wanted to know: the object of their sums, or why there are none.
fn requests_json(requests: &Requests) -> Value {
    match requests {
        Requests::Unwanted => Value::Null,
        Requests::Uncounted(why) => json!({ "error": why }),
        Requests::Counted(operations) => operations_json(operations),
    }
}

fn policy_json(policy: &PolicyStatus) -> Value {
    let walks = match &policy.walks {
        Walks::Free => json!({ "checked_by": "nobody" }),
        Walks::Checked(denied) => json!({ "checked_by": "kernel", "denied": denied }),
        Walks::Requested(why) => json!({ "checked_by": "daemon", "why": why }),
    };
    json!({ "rules": policy.rules, "denied": policy.denied, "walks": walks })
}

fn to_json(mount: &Found, report: &Result<Report, String>) -> Value {
    let place = json!({
        "mountpoint": mount.entry.mountpoint.to_string_lossy(),
        "source": mount.entry.source,
    });
    let rest = match report {
        Err(error) => json!({ "error": error }),
        Ok(report) => {
            let [answered, from_table, to_kernel] = counts_json(&report.mount.counts);
            let clients: Vec<_> = report
                .clients
                .iter()
                .map(|client| {
                    let [answered, from_table, to_kernel] = counts_json(&client.counts);
                    json!({
                            "pid": client.pid,
                            "uid": client.uid,
                            "program": client.program,
                            "answered": answered,
                    "from_table": from_table,
                            "to_kernel": to_kernel,
                        })
                })
                .collect();
            let senders: Vec<_> = report
                .senders
                .iter()
                .map(|sender| {
                    json!({
                        "pid": sender.pid,
                        "command": sender.command,
                        "requests": operations_json(&sender.requests),
                    })
                })
                .collect();
            json!({
                "pid": report.mount.pid,
                "version": report.mount.daemon_version,
                "file_system": report.mount.file_system,
                "known_inodes": report.mount.known_inodes,
                "transport": report.mount.transport.name(),
                "resident_bytes": report.mount.resident_bytes,
                "clients_ever": report.mount.clients_ever,
                "answered": answered,
                "from_table": from_table,
                "to_kernel": to_kernel,
                "clients": clients,
                "requests": requests_json(&report.mount.requests),
                "senders": senders,
                "xattr_answers": match &report.mount.xattr_answers {
                    Saved::Unwanted => Value::Null,
                    Saved::Impossible(why) => json!({ "error": why }),
                    Saved::Requests(count) => (*count).into(),
                },
                "policy": report.mount.policy.as_ref().map(policy_json),
                "deferred_unlinks": report.mount.deferred.map(|unlinks| json!({
                    "waiting": unlinks.waiting,
                    "done": unlinks.done,
                    "failed": unlinks.failed,
                })),
            })
        }
    };
    match (place, rest) {
        (Value::Object(mut place), Value::Object(rest)) => {
            place.extend(rest);
            place.into()
        }
        (place, _) => place,
    }
}

/// A number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

fn list(counts: Vec<(&str, u64)>) -> String {
    let mut counts = counts;
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.iter().map(|(name, count)| format!("{name} {}", grouped(*count))).collect::<Vec<_>>().join(" · ")
}

fn to_text(mount: &Found, report: &Result<Report, String>) -> String {
    let mut text = format!("{} ({})\n", mount.entry.mountpoint.display(), mount.entry.source);
    let report = match report {
        Ok(report) => report,
        Err(error) => return text + "  " + error + "\n",
    };
    let status = &report.mount;
    let (served, fell_back) = (status.counts.total_served(), status.counts.total_fell_back());
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "  daemon       process {}, version {}, {}; {} known inodes, {:.1} MiB resident; kernel transport {}",
        status.pid,
        status.daemon_version,
        status.file_system,
        grouped(status.known_inodes),
        status.resident_bytes as f64 / f64::from(1 << 20),
        status.transport.name(),
    );
    let _ = writeln!(
        text,
        "  bypass       {} clients, {} ever; {} calls answered, {} left to the kernel{}",
        grouped(status.clients),
        grouped(status.clients_ever),
        grouped(served),
        grouped(fell_back),
        match served.saturating_add(fell_back) {
            0 => String::new(),
            all => format!(" ({:.1} % bypassed)", served as f64 * 100.0 / all as f64),
        },
    );
    if served > 0 {
        let _ = writeln!(
            text,
            "    answered   {}",
            list(status.counts.served().map(|(op, count)| (op.name(), count)).collect())
        );
    }
    if status.counts.total_looked_up() > 0 {
        let _ = writeln!(
            text,
            "    by table   {}",
            list(status.counts.looked_up().map(|(op, count)| (op.name(), count)).collect())
        );
    }
    if fell_back > 0 {
        let _ = writeln!(
            text,
            "    to kernel  {}",
            list(status.counts.fell_back().map(|(reason, count)| (reason.name(), count)).collect())
        );
    }
    if !report.clients.is_empty() {
        let _ = writeln!(
            text,
            "  {:>10} {:>10} {:>15} {:>15}  PROGRAM",
            "PROCESS", "USER", "ANSWERED", "TO KERNEL"
        );
    }
    for client in &report.clients {
        let _ = writeln!(
            text,
            "  {:>10} {:>10} {:>15} {:>15}  {}",
            client.pid,
            client.uid,
            grouped(client.counts.total_served()),
            grouped(client.counts.total_fell_back()),
            // A client may call itself anything.
            client.program.escape_debug(),
        );
    }
    if let Some(policy) = &report.mount.policy {
        let _ = writeln!(
            text,
            "  policy       {} rules; {} requests denied{}",
            grouped(policy.rules),
            grouped(policy.denied),
            match &policy.walks {
                Walks::Free => String::new(),
                Walks::Checked(denied) => format!("; the kernel checks walks, {} denied", grouped(*denied)),
                Walks::Requested(why) => format!("; the kernel asks for each step of a walk: {why}"),
            },
        );
    }
    if let Some(unlinks) = &report.mount.deferred {
        let _ = writeln!(
            text,
            "  unlinks      {} deferred; {} done, {} failed",
            grouped(unlinks.waiting),
            grouped(unlinks.done),
            grouped(unlinks.failed),
        );
    }
    kernel_road(&mut text, report);
    text
}

/// What the kernel asked for programs that are not preloaded.
fn kernel_road(text: &mut String, report: &Report) {
    let operations = match &report.mount.requests {
        Requests::Unwanted => return,
        Requests::Uncounted(why) => {
            let _ = writeln!(text, "  kernel road  requests are not counted: {why}");
            return;
        }
        Requests::Counted(operations) => operations,
    };
    let total = |operations: &Operations| operations.iter().map(|(_, count)| count).sum::<u64>();
    let listed = |operations: &Operations| {
        list(operations.iter().map(|(name, count)| (name.as_str(), *count)).collect())
    };
    let _ = writeln!(text, "  kernel road  {} requests", grouped(total(operations)));
    if !operations.is_empty() {
        let _ = writeln!(text, "    asked for  {}", listed(operations));
    }
    match &report.mount.xattr_answers {
        Saved::Unwanted => {}
        Saved::Impossible(why) => {
            let _ = writeln!(text, "    saved      nothing: {why}");
        }
        Saved::Requests(count) => {
            let _ = writeln!(text, "    saved      GETXATTR {}", grouped(*count));
        }
    }
    if !report.senders.is_empty() {
        let _ = writeln!(text, "  {:>10} {:>10}  PROGRAM", "PROCESS", "REQUESTS");
    }
    for sender in &report.senders {
        // A process names its threads as it likes.
        let (pid, program) = match sender.pid {
            0 => ("-".to_owned(), "(the kernel, later)".to_owned()),
            pid => (pid.to_string(), sender.command.escape_debug().to_string()),
        };
        let (total, listed) = (grouped(total(&sender.requests)), listed(&sender.requests));
        let _ = writeln!(text, "  {pid:>10} {total:>10}  {program}: {listed}");
    }
}

#[cfg(test)]
mod tests {
    use finesse_ipc::counters::Counters;
    use finesse_ipc::frame::{Fallback, Op};
    use finesse_ipc::handshake::{ClientStatus, DeferredStatus, MountStatus, SenderStatus, Transport};
    use finesse_ipc::segment::Segment;

    use super::*;
    use crate::command::mounts::Entry;

    fn mount(socket: Result<Vec<u8>, String>) -> Found {
        let entry = Entry {
            dev: (0, 1),
            root: "/".into(),
            mountpoint: "/mnt".into(),
            kind: "fuse.finesse".into(),
            source: "/srv".into(),
        };
        Found { entry, socket }
    }

    fn report() -> Report {
        let (segment, _memory) = Segment::create().unwrap();
        let counters: &Counters = &segment.header().counters;
        for _ in 0..1999 {
            counters.served(Op::Stat);
        }
        counters.fell_back(Fallback::OpenDirectory);
        let counts = counters.snapshot();
        let client = ClientStatus { pid: 8, uid: 1000, program: "a\nb".into(), counts: counts.clone() };
        let mount = MountStatus {
            pid: 7,
            daemon_version: "1.0".into(),
            file_system: "passthrough".into(),
            clients: 1,
            clients_ever: 3,
            known_inodes: 12_345,
            resident_bytes: 3 << 20,
            counts,
            transport: Transport::Uring,
            requests: Requests::Counted(vec![("LOOKUP".into(), 1200), ("OPEN".into(), 2)]),
            xattr_answers: Saved::Requests(3000),
            policy: Some(PolicyStatus { rules: 5, denied: 1234, walks: Walks::Checked(7) }),
            deferred: Some(DeferredStatus { waiting: 2000, done: 3, failed: 1 }),
        };
        let sender = SenderStatus { pid: 9, command: "ls".into(), requests: vec![("LOOKUP".into(), 1200)] };
        Report { mount, clients: vec![client], senders: vec![sender] }
    }

    #[test]
    fn people_see_shares_and_reasons() {
        let text = to_text(&mount(Ok(vec![])), &Ok(report()));
        for part in [
            "/mnt (/srv)",
            "12 345 known inodes, 3.0 MiB",
            "kernel transport uring",
            "1 999 calls answered, 1 left to the kernel (100.0 % bypassed)",
            "answered   stat 1 999",
            "to kernel  open-directory 1",
            "a\\nb",
            "kernel road  1 202 requests\n",
            "asked for  LOOKUP 1 200 · OPEN 2\n",
            "saved      GETXATTR 3 000\n",
            "policy       5 rules; 1 234 requests denied; the kernel checks walks, 7 denied\n",
            "         9      1 200  ls: LOOKUP 1 200\n",
            "unlinks      2 000 deferred; 3 done, 1 failed\n",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn machines_get_every_count_by_name() {
        let value = to_json(&mount(Ok(vec![])), &Ok(report()));
        assert_eq!(value["answered"]["stat"], 1999);
        assert_eq!(value["to_kernel"]["open-directory"], 1);
        assert_eq!(value["clients"][0]["pid"], 8);
        assert_eq!(value["mountpoint"], "/mnt");
        assert_eq!(value["requests"]["OPEN"], 2);
        assert_eq!(value["policy"]["walks"]["checked_by"], "kernel");
        assert_eq!(value["deferred_unlinks"]["waiting"], 2000);
        assert_eq!(value["senders"][0]["requests"]["LOOKUP"], 1200);
    }

    #[test]
    fn a_mount_that_does_not_answer_says_why() {
        let text = to_text(&mount(Ok(vec![])), &Err("the daemon is gone".into()));
        assert_eq!(text, "/mnt (/srv)\n  the daemon is gone\n");
    }

    #[test]
    fn digits_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1 000"), (1_234_567, "1 234 567")] {
            assert_eq!(grouped(number), text);
        }
    }
}
