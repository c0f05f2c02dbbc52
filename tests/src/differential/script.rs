//! Scripts: which actor makes which call with which arguments.

use std::fmt::{self, Write};

use proptest::prelude::*;

use super::calls::{self, CALLS, Value};

/// Processes that a script begins with; each has two threads.
pub const PROCESSES: usize = 2;
/// With those that are forked.
const MOST_PROCESSES: usize = 4;
/// Actors are numbered ten times their process plus their thread.
const THREADS: usize = 2;

/// One call of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Who makes it.
    pub actor: usize,
    /// Which of [`CALLS`].
    pub call: usize,
    /// With what.
    pub arguments: Vec<Value>,
}

/// Calls in their order, and who the processes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Which of the first processes are an ordinary user's.
    pub ordinary: [bool; PROCESSES],
    /// Which of the first processes are preloaded where roads are mixed.
    pub preloaded: [bool; PROCESSES],
    /// What is done.
    pub steps: Vec<Step>,
}

/// As many as the longest call of the table has.
const ARGUMENTS_MAX: usize = 6;

/// A step before it is known who lives: any process, any thread, a call, and a number for each argument.
type RawStep = (u8, u8, usize, [u16; ARGUMENTS_MAX]);

/// All scripts.
pub fn scripts() -> impl Strategy<Value = Script> {
    let weighted: Vec<usize> =
        CALLS.iter().enumerate().flat_map(|(index, call)| std::iter::repeat_n(index, call.weight)).collect();
    let number = 0u16..2048;
    let step = (
        0u8..16,
        0u8..4,
        prop::sample::select(weighted).no_shrink(),
        [number.clone(), number.clone(), number.clone(), number.clone(), number.clone(), number],
    );
    let ordinary = prop::sample::select(vec![
        [false, false],
        [false, false],
        [true, false],
        [false, true],
        [true, true],
    ]);
    let preloaded = prop::sample::select(vec![[true, false], [false, true]]);
    let steps = prop_oneof![prop::collection::vec(step.clone(), 1..30), prop::collection::vec(step, 20..90),];
    (ordinary, preloaded, steps).prop_map(|(ordinary, preloaded, steps)| Script {
        ordinary,
        preloaded,
        steps: alive(&steps),
    })
}

/// Gives every step to an actor that lives at that point.
fn alive(raw: &[RawStep]) -> Vec<Step> {
    let mut living: Vec<usize> = (0..PROCESSES).collect();
    let mut next = PROCESSES;
    let mut steps = Vec::new();
    for &(process, thread, call, numbers) in raw {
        // The first process makes most calls.
        let process = living[usize::from(process.saturating_sub(7)) % living.len()];
        let thread = usize::from(thread == 3);
        let kind = &CALLS[call];
        assert!(kind.arguments.len() <= numbers.len(), "{} has more arguments than numbers", kind.name);
        let mut arguments: Vec<_> =
            kind.arguments.iter().zip(numbers).map(|(kind, raw)| kind.value(raw)).collect();
        let mut actor = 10 * process + thread % THREADS;
        match kind.name {
            "fork" if next == MOST_PROCESSES => continue,
            "fork" => {
                actor = 10 * process;
                arguments = vec![Value::Number(next as i64)];
                living.push(next);
                next += 1;
            }
            "exec" => actor = 10 * process,
            "die" if living.len() == 1 => continue,
            "die" => living.retain(|other| *other != process),
            _ => {}
        }
        steps.push(Step { actor, call, arguments });
    }
    let fifos = steps.iter().any(|step| calls::makes_fifo(&CALLS[step.call], &step.arguments));
    if fifos {
        steps.retain(|step| !calls::may_wait(&CALLS[step.call]));
        for step in &mut steps {
            if let Some(index) = calls::open_flags(&CALLS[step.call])
                && let Value::Number(flags) = &mut step.arguments[index]
            {
                *flags |= i64::from(calls::NONBLOCK);
            }
            if CALLS[step.call].name == "creat" {
                let name = step.arguments[1].clone();
                let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | calls::NONBLOCK;
                step.call = calls::by_name("create").expect("in the table");
                step.arguments = vec![
                    step.arguments[0].clone(),
                    name,
                    Value::Number(i64::from(flags)),
                    step.arguments[2].clone(),
                ];
            }
        }
    }
    steps
}

/// In the form that the performer reads and that can be kept: who the processes are, then one call a line.
impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = |flags: &[bool]| flags.iter().map(|flag| u8::from(*flag).to_string()).collect::<String>();
        writeln!(f, "ordinary={} preloaded={}", words(&self.ordinary), words(&self.preloaded))?;
        for step in &self.steps {
            write!(f, "{} {}", step.actor, CALLS[step.call].name)?;
            for argument in &step.arguments {
                match argument {
                    Value::Number(number) => write!(f, " {number}")?,
                    Value::Text(text) => write!(f, " {text}")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Script {
    /// Reads what `Display` has written.
    ///
    /// # Panics
    /// It is something else.
    pub fn parse(text: &str) -> Self {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let first = lines.next().expect("a first line");
        let flags = |name: &str| -> [bool; PROCESSES] {
            let word =
                first.split(' ').find_map(|word| word.strip_prefix(name)).expect("who the processes are");
            let flags: Vec<_> = word.chars().map(|digit| digit == '1').collect();
            flags.try_into().expect("one digit for each process")
        };
        let steps = lines.map(|line| {
            let mut words = line.split(' ');
            let actor = words.next().and_then(|word| word.parse().ok()).expect("an actor");
            let name = words.next().expect("a call");
            let call = calls::by_name(name).unwrap_or_else(|| panic!("no such call: {name}"));
            let arguments: Vec<_> = words
                .map(|word| match word.parse() {
                    Ok(number) => Value::Number(number),
                    Err(_) => Value::Text(word.to_owned()),
                })
                .collect();
            assert_eq!(arguments.len(), CALLS[call].arguments.len(), "{line}");
            Step { actor, call, arguments }
        });
        Self { ordinary: flags("ordinary="), preloaded: flags("preloaded="), steps: steps.collect() }
    }

    /// Without the steps of processes that are not there.
    fn possible(mut self) -> Self {
        let mut living: Vec<usize> = (0..PROCESSES).collect();
        self.steps.retain(|step| {
            let process = step.actor / 10;
            let lives = living.contains(&process);
            match (lives, CALLS[step.call].name, step.arguments.first()) {
                (true, "fork", Some(Value::Number(child))) => living.push(*child as usize),
                (true, "die", _) => living.retain(|other| *other != process),
                _ => {}
            }
            lives
        });
        self
    }

    /// The smallest script found that still does what `fails` looks for: without steps first, then with simpler
    /// arguments.
    pub fn shrunk(self, mut fails: impl FnMut(&Self) -> bool) -> Self {
        let mut smallest = self;
        let mut chunk = smallest.steps.len().div_ceil(2).max(1);
        loop {
            let mut start = 0;
            while start < smallest.steps.len() {
                let mut shorter = smallest.clone();
                shorter.steps.drain(start..(start + chunk).min(smallest.steps.len()));
                let shorter = shorter.possible();
                if fails(&shorter) {
                    smallest = shorter;
                } else {
                    start += chunk;
                }
            }
            if chunk == 1 {
                break;
            }
            chunk = chunk.div_ceil(2);
        }
        let simplify =
            |smallest: &mut Self, change: &dyn Fn(&mut Self), fails: &mut dyn FnMut(&Self) -> bool| {
                let mut simpler = smallest.clone();
                change(&mut simpler);
                if simpler != *smallest && fails(&simpler) {
                    *smallest = simpler;
                }
            };
        simplify(&mut smallest, &|script| script.ordinary = [false; PROCESSES], &mut fails);
        for step in 0..smallest.steps.len() {
            if smallest.steps[step].actor % 10 == 1 {
                simplify(&mut smallest, &|script| script.steps[step].actor -= 1, &mut fails);
            }
            let call = smallest.steps[step].call;
            for (argument, kind) in CALLS[call].arguments.iter().enumerate() {
                simplify(
                    &mut smallest,
                    &|script| {
                        if CALLS[call].name != "fork" {
                            script.steps[step].arguments[argument] = kind.value(0);
                        }
                    },
                    &mut fails,
                );
            }
        }
        smallest
    }

    /// What the performer reads: actor, number of the call, arguments.
    pub fn for_performer(&self) -> String {
        let mut text = String::new();
        for step in &self.steps {
            // Writing to a string does not fail.
            let _ = write!(text, "{} {}", step.actor, step.call);
            for argument in &step.arguments {
                let _ = match argument {
                    Value::Number(number) => write!(text, " {number}"),
                    Value::Text(name) => write!(text, " {name}"),
                };
            }
            text.push('\n');
        }
        text
    }

    /// A call as C writes it.
    pub fn listed(&self, index: usize) -> String {
        let step = &self.steps[index];
        let call = &CALLS[step.call];
        calls::substituted(call, |argument| call.arguments[argument].listed(&step.arguments[argument]))
    }
}
