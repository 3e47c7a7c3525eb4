//! `kfs-fuzz`: runs a target without libFuzzer.
//!
//! ```text
//! kfs-fuzz TARGET FILE...             each file once, with what it takes
//! kfs-fuzz TARGET -n COUNT [SEED]     so many mutations of the kept inputs
//! kfs-fuzz TARGET -t SECONDS [SEED]   as many as there is time for
//! ```
//!
//! An execution that panics, hangs or takes too much memory ends the program with an error; its
//! input is left in `artifacts`.

use kfs_fuzz::limits::{self, Taken};
use kfs_fuzz::mutate::{Rng, mutate};
use kfs_fuzz::targets::{self, Target};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: kfs-fuzz TARGET FILE... | kfs-fuzz TARGET -n COUNT [SEED] | \
                     kfs-fuzz TARGET -t SECONDS [SEED]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kfs-fuzz: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<(), String> {
    let number = |text: &str| {
        text.parse::<u64>()
            .map_err(|error| format!("{text}: {error}"))
    };
    let seed = |rest: &[&str]| rest.first().map_or(Ok(1), |text| number(text));
    match words {
        [name, "-n", count, rest @ ..] if rest.len() < 2 => {
            random(target(name)?, number(count)?, Duration::MAX, seed(rest)?)
        }
        [name, "-t", seconds, rest @ ..] if rest.len() < 2 => {
            let time = Duration::from_secs(number(seconds)?);
            random(target(name)?, u64::MAX, time, seed(rest)?)
        }
        [name, files @ ..] if !files.is_empty() && !files[0].starts_with('-') => {
            replay(target(name)?, files)
        }
        _ => Err(USAGE.into()),
    }
}

fn target(name: &str) -> Result<Target, String> {
    let known = targets::ALL.into_iter().find(|target| target.name == name);
    known.ok_or_else(|| {
        let names: Vec<&str> = targets::ALL.iter().map(|target| target.name).collect();
        format!("there is no target {name:?}: {}", names.join(", "))
    })
}

fn replay(target: Target, files: &[&str]) -> Result<(), String> {
    for file in files {
        let input = std::fs::read(file).map_err(|error| format!("{file}: {error}"))?;
        let taken = limits::within(file, &input, target.run);
        println!("{file}: {}", show(taken));
    }
    Ok(())
}

fn show(taken: Taken) -> String {
    format!(
        "{:.1?} of the processor, {} KiB",
        taken.cpu,
        taken.memory >> 10
    )
}

fn random(target: Target, count: u64, time: Duration, seed: u64) -> Result<(), String> {
    let name = target.name;
    let artifacts = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("artifacts")
        .join(name);
    std::fs::create_dir_all(&artifacts).map_err(|error| error.to_string())?;
    let keep = |name: &str, input: &[u8]| {
        std::fs::write(artifacts.join(name), input).map_err(|error| error.to_string())
    };
    let kept = targets::kept(name);
    let (mut slowest, mut largest) = (Taken::default(), Taken::default());
    let (mut rng, started) = (Rng::new(seed), Instant::now());
    let mut done = 0;
    while done < count && started.elapsed() < time {
        let input = mutate(&mut rng, &kept, target.max_len);
        let taken = limits::within(&format!("{name}, seed {seed}, {done}"), &input, target.run);
        done += 1;
        if taken.cpu > slowest.cpu {
            slowest = taken;
            keep("slowest", &input)?;
        }
        if taken.memory > largest.memory {
            largest = taken;
            keep("largest", &input)?;
        }
    }
    println!(
        "{name}: {done} executions with seed {seed} from {} kept inputs in {:.0?}",
        kept.len(),
        started.elapsed()
    );
    println!(
        "{name}: the slowest took {}; the largest, {}",
        show(slowest),
        show(largest)
    );
    Ok(())
}
