//! The first process of a pod: holds its namespaces, reaps what the pod's processes leave behind, and ends on SIGINT
//! and SIGTERM. No heap, no C library, no signal handlers: it waits for blocked signals.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;

// Numbers of arch/x86/entry/syscalls/syscall_64.tbl.
const RT_SIGPROCMASK: usize = 14;
const WAIT4: usize = 61;
const EXIT_GROUP: usize = 231;
const RT_SIGTIMEDWAIT: usize = 128;

const SIGINT: isize = 2;
const SIGTERM: isize = 15;
const SIGCHLD: isize = 17;

const SIG_BLOCK: usize = 0;
const WNOHANG: usize = 1;
/// Bytes of the kernel's signal set.
const SET_BYTES: usize = 8;

// The kernel enters with the stack pointer at argc, which the ABI's function prologue does not expect.
global_asm!(".globl _start", "_start:", "xor %ebp, %ebp", "and $-16, %rsp", "call {main}", "ud2", main = sym main,
    options(att_syntax));

/// One system call with up to four arguments; the result is negative on errors.
///
/// # Safety
/// The arguments must be what system call `number` expects.
unsafe fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result;
    // SAFETY: the kernel's calling convention: rcx and r11 are lost, everything else stays.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

extern "C" fn main() -> ! {
    let signals: u64 = [SIGINT, SIGTERM, SIGCHLD].iter().fold(0, |set, signal| set | 1 << (signal - 1));
    let set = &raw const signals as usize;
    // Blocked signals stay pending even for process 1, which would otherwise lose those it has no handler for.
    // SAFETY: `set` points at SET_BYTES readable bytes that live as long as the process.
    unsafe { syscall(RT_SIGPROCMASK, SIG_BLOCK, set, 0, SET_BYTES) };
    loop {
        // SAFETY: as above; no information and no timeout are asked for.
        match unsafe { syscall(RT_SIGTIMEDWAIT, set, 0, 0, SET_BYTES) } {
            // SAFETY: WAIT4 of any child takes no pointers here; EXIT_GROUP takes a number and does not return.
            SIGCHLD => while unsafe { syscall(WAIT4, usize::MAX, 0, WNOHANG, 0) } > 0 {},
            SIGINT | SIGTERM => unsafe {
                syscall(EXIT_GROUP, 0, 0, 0, 0);
            },
            // Interrupted by a stop and continue.
            _ => {}
        }
    }
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {
        // SAFETY: takes a number and does not return.
        unsafe { syscall(EXIT_GROUP, 1, 0, 0, 0) };
    }
}
