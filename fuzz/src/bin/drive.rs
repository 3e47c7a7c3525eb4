//! `drive`: runs a target without libFuzzer.
//!
//! ```text
//! drive TARGET FILE...             each file once, with what it takes
//! drive TARGET -n COUNT [SEED]     mutations of the kept inputs
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

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let names: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match &names[..] {
        [name, "-n", count] => random(name, count, "1"),
        [name, "-n", count, seed] => random(name, count, seed),
        [name, files @ ..] if !files.is_empty() => replay(name, files),
        _ => Err("usage: drive TARGET FILE... | drive TARGET -n COUNT [SEED]".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("drive: {error}");
            ExitCode::FAILURE
        }
    }
}

fn target(name: &str) -> Result<Target, String> {
    let known = targets::ALL.into_iter().find(|target| target.name == name);
    known.ok_or_else(|| {
        let names: Vec<&str> = targets::ALL.iter().map(|target| target.name).collect();
        format!("there is no target {name:?}: {}", names.join(", "))
    })
}

fn replay(name: &str, files: &[&str]) -> Result<(), String> {
    let target = target(name)?;
    for file in files {
        let input = std::fs::read(file).map_err(|error| format!("{file}: {error}"))?;
        let taken = limits::within(file, &input, target.run);
        println!("{file}: {}", show(taken));
    }
    Ok(())
}

fn show(taken: Taken) -> String {
    format!("{:.1?} of the processor, {} KiB", taken.cpu, taken.memory >> 10)
}

fn random(name: &str, count: &str, seed: &str) -> Result<(), String> {
    let target = target(name)?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    let (count, seed) = (number(count)?, number(seed)?);
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let artifacts = top.join("artifacts").join(name);
    std::fs::create_dir_all(&artifacts).map_err(|error| error.to_string())?;
    let kept = targets::kept(target.name);
    let (mut slowest, mut largest) = (Taken::default(), Taken::default());
    let (mut rng, started) = (Rng::new(seed), Instant::now());
    let mut told = Instant::now();
    for done in 0..count {
        let input = mutate(&mut rng, &kept, target.max_len);
        let taken = limits::within(&format!("{name} {done}"), &input, target.run);
        let keep = |name: &str| std::fs::write(artifacts.join(name), &input);
        if taken.cpu > slowest.cpu {
            slowest = taken;
            keep("slowest").map_err(|error| error.to_string())?;
        }
        if taken.memory > largest.memory {
            largest = taken;
            keep("largest").map_err(|error| error.to_string())?;
        }
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            println!("{name}: {} of {count}", done + 1);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{name}: {count} executions in {seconds:.0} s, {:.0} a second", count as f64 / seconds);
    println!("{name}: the slowest took {}", show(slowest));
    println!("{name}: the largest took {}", show(largest));
    Ok(())
}
