//! CPU time and memory of processes, from `/proc` (Linux; the figures are zero elsewhere).
//!
//! CPU is the scheduler's own count (`/proc/PID/task/*/schedstat`, first field, ns): it has no sampling error, and it sums every thread
//! of the process, so a server that moves work to another thread gains nothing. Memory is `Pss` where the kernel tells it, else
//! `VmRSS`. A process that has ended counts as zero, which the caller sees as a connection closed long before.

use std::fs;

/// Nanoseconds of CPU that all threads of `pids` have used so far.
#[must_use]
pub fn cpu_ns(pids: &[u32]) -> u64 {
    pids.iter().map(|pid| threads_cpu_ns(&format!("/proc/{pid}/task"))).sum()
}

/// Nanoseconds of CPU of this process.
#[must_use]
pub fn own_cpu_ns() -> u64 {
    threads_cpu_ns("/proc/self/task")
}

fn threads_cpu_ns(tasks: &str) -> u64 {
    let Ok(threads) = fs::read_dir(tasks) else {
        return 0;
    };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok())
        .filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

/// Memory of processes at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident bytes; pages shared with other processes count fully.
    pub rss_bytes: u64,
    /// Resident bytes; a page shared by n processes counts 1/n. Zero where the kernel does not tell.
    pub pss_bytes: u64,
}

/// Memory of `pids` now.
#[must_use]
pub fn memory(pids: &[u32]) -> Memory {
    let sum = |file: &str, field: &str| -> u64 {
        pids.iter().filter_map(|pid| field_bytes(&fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?, field)).sum()
    };
    Memory { rss_bytes: sum("status", "VmRSS:"), pss_bytes: sum("smaps_rollup", "Pss:") }
}

/// Memory of the kernel itself that sockets are in: slabs, and the pages of TCP's buffers; of the whole machine, 0 where it is not told.
#[must_use]
pub fn kernel_bytes() -> u64 {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let slabs = field_bytes(&text("/proc/meminfo"), "Slab:").unwrap_or(0);
    slabs + tcp_pages(&text("/proc/net/sockstat")).unwrap_or(0) * PAGE_BYTES
}

/// What the kernel counts buffers in, on every machine that this is measured on.
const PAGE_BYTES: u64 = 4096;

/// The value after `mem` in the line `TCP: inuse 5 orphan 0 tw 2 alloc 7 mem 3`.
fn tcp_pages(sockstat: &str) -> Option<u64> {
    let mut words = sockstat.lines().find(|line| line.starts_with("TCP:"))?.split_whitespace();
    words.find(|word| *word == "mem")?;
    words.next()?.parse().ok()
}

/// The value of a line `field   123 kB`, in bytes.
fn field_bytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(field))?;
    line[field.len()..].split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_is_read_in_bytes_and_not_taken_for_a_longer_name() {
        let text = "Pss_Dirty:     7 kB\nPss:          12 kB\n";
        assert_eq!(field_bytes(text, "Pss:"), Some(12 * 1024));
        assert_eq!(field_bytes(text, "VmRSS:"), None);
    }

    #[test]
    fn pages_of_tcp_are_read_and_missing_where_there_is_no_such_line() {
        let text = "sockets: used 123\nTCP: inuse 5 orphan 0 tw 2 alloc 7 mem 3\nUDP: inuse 1 mem 9\n";
        assert_eq!(tcp_pages(text), Some(3));
        assert_eq!(tcp_pages("UDP: inuse 1 mem 9"), None);
    }

    #[test]
    fn process_that_does_not_exist_counts_as_nothing() {
        assert_eq!(cpu_ns(&[u32::MAX]), 0);
        assert_eq!(memory(&[u32::MAX]).rss_bytes, 0);
    }
}
