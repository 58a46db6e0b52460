//! A kernel that has gathered no randomness yet, for one program: a filter of system calls says what such a kernel says.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Offsets in `struct seccomp_data` (seccomp(2)).
const NUMBER: u32 = 0;
const FLAGS: u32 = 24;

/// `command` and its children never get random bytes where they ask not to be kept waiting (getrandom(2)).
pub(crate) fn starve(command: &mut Command) {
    // Everything else, such as the seed of a hash map, is given as ever.
    let program = [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, NUMBER, 0, 0),
        instruction(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            libc::SYS_getrandom as u32,
            0,
            3,
        ),
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, FLAGS, 0, 0),
        instruction(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            libc::GRND_NONBLOCK,
            0,
            1,
        ),
        instruction(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | libc::EAGAIN as u32,
            0,
            0,
        ),
        instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let filter = move || {
        let program = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_ptr().cast_mut(),
        };
        #[expect(unsafe_code, reason = "the standard library has no filters")]
        // SAFETY: the kernel reads the program, which lives until the call is over.
        let set = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        if set == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    #[expect(unsafe_code, reason = "the filter must be set in the child")]
    // SAFETY: between fork and exec there is one system call, and no memory is taken.
    unsafe {
        command.pre_exec(filter);
    }
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}
