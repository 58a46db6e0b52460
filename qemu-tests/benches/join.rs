//! How fast a fresh worker joins a standing cluster: from switching it on until the API says that its Node is Ready.
//! Beside it the same join made with the real `kubeadm join`, on the same image, in the same run, one after the other.
//! Prints every command and figure; asserts no time.
//!
//! `cargo bench -p kimage-qemu-tests --bench join` (as root: machines are namespaces). Images and components are built
//! first if need be, which is not timed.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::time::Duration;

use anyhow::Result;

use joining::{Bench, Join};
use ways::Way;

#[path = "join/joining.rs"]
mod joining;
#[path = "join/observed.rs"]
mod observed;
#[path = "join/ways.rs"]
mod ways;

const RUNS: usize = 3;
/// Part of kubeadm's time that ours may take.
const RATIO_GOAL: f64 = 0.5;
/// Processor time of `kimage-firstboot`, in seconds.
const PROCESSOR_GOAL: f64 = 0.3;
/// Memory of the agent, in MB (10^6 bytes).
const AGENT_GOAL: f64 = 30.0;

fn main() -> Result<()> {
    let mut bench = Bench::new()?;
    let before = bench.agent()?;
    let mut joins: Vec<(Way, Vec<Join>)> = Way::ALL.map(|way| (way, Vec::new())).into();
    for run in 0..RUNS {
        for (way, measured) in &mut joins {
            let join = bench.join(*way, run)?;
            println!("{way}, run {}: Ready after {:.2} s", run + 1, seconds(join.ready));
            measured.push(join);
        }
    }
    let after = bench.agent()?;
    print_times(&joins);
    print_phases(&joins);
    print_costs(&joins);
    let minutes = (after.when - before.when).as_secs_f64() / 60.0;
    println!(
        "\nkimage-firstboot agent of the control plane: {:.1} MB resident, {:.1} MB of them its own (PSS), at most {:.1} MB \
         (goal {AGENT_GOAL:.0}); {:.2} s of processor per minute.",
        after.resident_mb,
        after.proportional_mb,
        after.peak_mb,
        seconds(after.processor - before.processor) / minutes
    );
    Ok(())
}

fn print_times(joins: &[(Way, Vec<Join>)]) {
    let ready = |measured: &[Join]| sorted(measured.iter().map(|join| join.ready));
    let peer = joins.iter().find(|(way, _)| *way == Way::Kubeadm);
    let peer = peer.map_or(f64::NAN, |(_, measured)| seconds(median(&ready(measured))));
    println!(
        "\n{:<50} {:>7} {:>7} {:>7} {:>7} {:>6}",
        "from switching on to Node Ready, seconds", "min", "median", "max", "ratio", "goal"
    );
    for (way, measured) in joins {
        let times = ready(measured);
        let (least, most) = (times[0], times[times.len() - 1]);
        let middle = median(&times);
        println!(
            "{:<50} {:>7.2} {:>7.2} {:>7.2} {:>7.2} {:>6}",
            way.to_string(),
            seconds(least),
            seconds(middle),
            seconds(most),
            seconds(middle) / peer,
            if *way == Way::Kubeadm {
                String::new()
            } else {
                RATIO_GOAL.to_string()
            },
        );
    }
}

/// When what happened, in the run with the median.
fn print_phases(joins: &[(Way, Vec<Join>)]) {
    println!("\nseconds after switching on, in the median run");
    for (way, measured) in joins {
        println!("  {way}");
        let middle = median(&sorted(measured.iter().map(|join| join.ready)));
        let Some(join) = measured.iter().find(|join| join.ready == middle) else {
            continue;
        };
        for mark in &join.marks {
            println!("    {:>6.2}  {}", seconds(mark.after), mark.what);
        }
        if !join.phases.is_empty() {
            let phases = join.phases.iter();
            let phases: Vec<String> = phases
                .map(|(phase, took)| format!("{phase} {:.2}", seconds(*took)))
                .collect();
            println!("    phases of first boot, each by itself: {}", phases.join("  "));
        }
    }
}

fn print_costs(joins: &[(Way, Vec<Join>)]) {
    println!(
        "\n{:<50} {:>12} {:>12} {:>6} {:>12}",
        "medians", "MB from disk", "processor s", "goal", "containers s"
    );
    for (way, measured) in joins {
        let middle = |of: fn(&Join) -> Duration| seconds(median(&sorted(measured.iter().map(of))));
        let mut bytes: Vec<u64> = measured.iter().map(|join| join.disk_bytes).collect();
        bytes.sort_unstable();
        println!(
            "{:<50} {:>12.1} {:>12.2} {:>6} {:>12.2}",
            way.to_string(),
            bytes[bytes.len() / 2] as f64 / 1e6,
            middle(|join| join.processor),
            if *way == Way::Kubeadm {
                String::new()
            } else {
                PROCESSOR_GOAL.to_string()
            },
            middle(|join| join.containers),
        );
    }
    println!(
        "MB from disk: what the loop device below the machine's root read from the image's file until Ready. Before each \
         start the host dropped all clean pages (drop_caches): the times above are of cold starts, too. /var is not in \
         it.\n\
         processor s: user and system time of `kimage-firstboot boot`, or of `kubeadm join`, with all that they start \
         and wait for, until they end. containers s: of `kimage-firstboot containers`, which all machines run before \
         containerd. Counted in clock ticks of 10 ms."
    );
}

fn sorted(times: impl Iterator<Item = Duration>) -> Vec<Duration> {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    times
}

fn median(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() / 2]
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
