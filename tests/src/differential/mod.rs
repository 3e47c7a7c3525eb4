//! The same operations on two file systems: whatever one says or shows must be what the other does.
//!
//! `Generator` makes operations of several actors, each with its own user, open files, umask and root
//! directory. `Duel` has each done on both sides, one after the other, and compares what they say; from
//! time to time it compares pictures of the trees. What may differ (inode numbers, the order of lists,
//! times of now) is left out of answers and pictures.
//!
//! Operations hold concrete names and numbers: a sequence that failed can be done again, and made
//! shorter ([`minimize`]).

mod actor;
mod answer;
mod execute;
mod execute_open;
mod generator;
mod operation;
mod picture;
mod random;
mod values;

pub use actor::Actor;
pub use answer::Answer;
pub use generator::{Generator, Rules};
pub use operation::{Action, Operation, USERS};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::fs;
use std::path::Path;

/// Operations between two comparisons of the trees.
const COMPARE_EVERY: usize = 100;

/// One of two trees that should be the same: a folder, and the actors at work below it.
struct Side {
    name: &'static str,
    actors: Vec<Actor>,
}

/// Two folders and what was done on them so far.
pub struct Duel {
    sides: [Side; 2],
    done: Vec<Operation>,
    /// Some file may be immutable or append-only.
    flags_are_set: bool,
    compares_holes: bool,
}

/// What is counted of a duel.
#[derive(Debug, Default)]
pub struct Figures {
    /// Operations done.
    pub operations: usize,
    /// Those that succeeded.
    pub succeeded: usize,
    /// Those whose changes of times were compared.
    pub watched: usize,
    /// Of each action, how many succeeded, and how many there were.
    pub actions: BTreeMap<String, [usize; 2]>,
    /// Comparisons of the trees.
    pub pictures: usize,
    /// Lines of the largest picture.
    pub lines: usize,
}

/// What the sides do not agree on.
#[derive(Debug)]
pub struct Difference {
    /// The same for what is likely to be the same fault.
    pub signature: String,
    text: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Difference {}

/// Whether a line of a picture says where a file's holes are.
pub fn is_about_holes(line: &str) -> bool {
    after_path(line).starts_with("data in")
}

/// What a line says of a path.
fn after_path(line: &str) -> &str {
    line.split_once(": ").map_or(line, |(_, fact)| fact)
}

impl Duel {
    /// Starts actors on the folder `name` of both, which is made; the second is the reference.
    ///
    /// # Errors
    /// When the folder cannot be made; actors need root for chroot and setuid.
    pub fn new(subject: &Path, reference: &Path, name: &str) -> Result<Self> {
        let side = |title, top: &Path| -> Result<Side> {
            let home = top.join(name);
            fs::create_dir(&home).with_context(|| format!("making {}", home.display()))?;
            let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            fs::set_permissions(&home, everybody)?;
            let actors = USERS
                .iter()
                .map(|user| Actor::start(&home, user))
                .collect::<Result<_>>()?;
            Ok(Side {
                name: title,
                actors,
            })
        };
        Ok(Self {
            sides: [side("kfs", subject)?, side("ext4", reference)?],
            done: Vec::new(),
            flags_are_set: false,
            compares_holes: true,
        })
    }

    /// Holes are not compared any more.
    pub fn leave_holes_out(&mut self) {
        self.compares_holes = false;
    }

    /// What was done, and failed last.
    pub fn into_operations(self) -> Vec<Operation> {
        self.done
    }

    /// Does one operation on both sides and gives their common answer.
    ///
    /// # Errors
    /// When the sides do not agree on the answer, or on which times of the watched paths changed.
    pub fn step(&mut self, operation: &Operation) -> Result<Answer> {
        self.done.push(operation.clone());
        self.flags_are_set |= operation.action.forbids_changes();
        if operation.watched.is_empty() {
            return self.act(operation);
        }
        // Clocks of file systems tick every few milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(9));
        let before = self.look_at(&operation.watched)?;
        let answer = self.act(operation)?;
        let after = self.look_at(&operation.watched)?;
        let changes = [0, 1].map(|side| {
            let mut text = String::new();
            let looks = before[side].iter().zip(&after[side]);
            for (path, (old, new)) in operation.watched.iter().zip(looks) {
                writeln!(text, "        {path}: {}", old.changes(new)).expect("strings take all");
            }
            text
        });
        // Linux makes the whiteout before it looks whether the rename can be done.
        if changes[0] != changes[1] && (answer.is_success() || !operation.action.is_whiteout()) {
            let differences = changes[0].lines().zip(changes[1].lines());
            let signature = differences
                .filter(|(subject, reference)| subject != reference)
                .map(|(subject, reference)| [subject, reference].map(after_path).join(" / "))
                .collect::<Vec<_>>();
            bail!(Difference {
                signature: format!("{} {signature:?}", operation.action.name()),
                text: format!(
                    "operation {}: {operation:?} ({answer}) changed\n    kfs:\n{}    ext4:\n{}",
                    self.done.len(),
                    changes[0],
                    changes[1]
                ),
            });
        }
        Ok(answer)
    }

    fn act(&self, operation: &Operation) -> Result<Answer> {
        let act = |side: &Side| side.actors[operation.actor].act(&operation.action);
        let [subject, reference] = self.sides.each_ref().map(act);
        let (subject, reference) = (subject?, reference?);
        if !self.agree(&operation.action, &subject, &reference) {
            let word = |answer: &Answer| match answer {
                Answer::Done(_) => "done".into(),
                other => other.to_string(),
            };
            let name = operation.action.name();
            bail!(Difference {
                signature: format!("{name} {} / {}", word(&subject), word(&reference)),
                text: format!(
                    "operation {}: {operation:?}\n    kfs:  {subject}\n    ext4: {reference}",
                    self.done.len()
                ),
            });
        }
        Ok(reference)
    }

    /// Whether two answers are taken for the same. Linux asks for immutable and append-only files before
    /// it asks for much else; of FUSE it does not know these flags, and asks us last, or not at all.
    fn agree(&self, action: &Action, subject: &Answer, reference: &Answer) -> bool {
        if subject == reference {
            return true;
        }
        let is_about_flags = match action {
            Action::Access { .. } | Action::RemoveXattr { .. } => {
                *reference == Answer::Failed(Errno::PERM)
            }
            _ => *reference == Answer::Failed(Errno::PERM) && !subject.is_success(),
        };
        self.flags_are_set && is_about_flags
    }

    fn look_at(&self, paths: &[String]) -> Result<[Vec<values::Times>; 2]> {
        let look = |side: &Side| -> Result<Vec<_>> {
            let actor = &side.actors[0];
            paths.iter().map(|path| actor.times(path)).collect()
        };
        let [subject, reference] = self.sides.each_ref().map(look);
        Ok([subject?, reference?])
    }

    /// Compares the trees; gives the number of lines of their picture.
    ///
    /// # Errors
    /// When the trees differ; the first lines are shown.
    pub fn compare_trees(&self) -> Result<usize> {
        let [subject, reference] = self.sides.each_ref().map(|side| {
            let picture = side.actors[0].picture();
            picture.with_context(|| format!("looking at the tree of {}", side.name))
        });
        let (mut subject, mut reference) = (subject?, reference?);
        if !self.compares_holes {
            subject.retain(|line| !is_about_holes(line));
            reference.retain(|line| !is_about_holes(line));
        }
        if subject == reference {
            return Ok(reference.len());
        }
        let mut text = format!("the trees differ after operation {}\n", self.done.len());
        let mut kinds = BTreeSet::new();
        for (name, lines, others) in [
            ("kfs", &subject, &reference),
            ("ext4", &reference, &subject),
        ] {
            let others: BTreeSet<_> = others.iter().collect();
            let differing = lines.iter().filter(|line| !others.contains(line));
            for line in differing {
                kinds.insert(after_path(line).split(' ').next().unwrap_or_default());
                if text.lines().count() < 40 {
                    writeln!(text, "    {name:4}: {line}")?;
                }
            }
        }
        if let Some(last) = self.done.last() {
            writeln!(text, "    the last: {last:?}")?;
        }
        bail!(Difference {
            signature: format!("{kinds:?}"),
            text,
        });
    }

    /// Does `count` operations of a generator, comparing trees from time to time, after each
    /// operation from number `compare_from` on, and at the end.
    ///
    /// # Errors
    /// The first difference.
    pub fn run(
        &mut self,
        generator: &mut Generator,
        count: usize,
        compare_from: usize,
    ) -> Result<Figures> {
        let mut figures = Figures::default();
        for number in 1..=count {
            let operation = generator.next_operation();
            let answer = self.step(&operation)?;
            generator.learn(&operation, &answer);
            figures.operations += 1;
            let action = figures.actions.entry(operation.action.name()).or_default();
            action[0] += usize::from(answer.is_success());
            action[1] += 1;
            figures.watched += usize::from(!operation.watched.is_empty());
            figures.succeeded += usize::from(answer.is_success());
            if number % COMPARE_EVERY == 0 || number >= compare_from || number == count {
                figures.lines = figures.lines.max(self.compare_trees()?);
                figures.pictures += 1;
            }
        }
        Ok(figures)
    }

    /// Does operations again, then compares the trees.
    ///
    /// # Errors
    /// The first difference.
    pub fn replay(&mut self, operations: &[Operation]) -> Result<()> {
        for operation in operations {
            self.step(operation)?;
        }
        self.compare_trees().map(drop)
    }
}

/// Leaves out of a failing sequence what it fails without. `fails` does a sequence again.
pub fn minimize(
    mut operations: Vec<Operation>,
    mut fails: impl FnMut(&[Operation]) -> bool,
) -> Vec<Operation> {
    let mut chunk = operations.len().div_ceil(2);
    while chunk > 0 {
        let mut start = 0;
        while start < operations.len() {
            let end = operations.len().min(start + chunk);
            let shorter = [&operations[..start], &operations[end..]].concat();
            if fails(&shorter) {
                operations = shorter;
            } else {
                start = end;
            }
        }
        chunk /= 2;
    }
    operations
}
