//! The seccomp filter of the sandboxed processes: which system calls the supervisor answers, which are refused.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Instruction set of the system calls that pass (`linux/audit.h`); others, such as i386's, have other numbers for
/// the same calls and would slip through.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// x32 calls on x86-64 have this bit.
#[cfg(target_arch = "x86_64")]
const FOREIGN_BIT: u32 = 0x4000_0000;

/// `setxattrat` and `removexattrat` (Linux 6.13), the same number everywhere.
pub(super) const SYS_SETXATTRAT: i64 = 463;
pub(super) const SYS_REMOVEXATTRAT: i64 = 466;
/// `quotactl_fd` (Linux 5.14) and `open_tree_attr` (Linux 6.15).
const SYS_QUOTACTL_FD: i64 = 443;
const SYS_OPEN_TREE_ATTR: i64 = 467;

/// Answered by the supervisor.
const NOTIFIED: &[i64] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_mknodat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    SYS_SETXATTRAT,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    SYS_REMOVEXATTRAT,
];

/// Refused with EPERM: ways to leave the sandbox, to reach past the filter, or to touch the kernel. No package's
/// scripts need them.
const FORBIDDEN: &[i64] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_open_by_handle_at,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_quotactl,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_kcmp,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    SYS_QUOTACTL_FD,
    SYS_OPEN_TREE_ATTR,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// Refused as if the kernel did not know them, so that callers fall back: io_uring would do the calls above without
/// passing the filter, the flags of clone3 are in memory where a filter can't read them, and the others hold memory
/// that belongs to no process, where nobody would count it.
const UNKNOWN: &[i64] = &[
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_clone3,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_shmget,
    libc::SYS_msgget,
];

/// Answered with success and not made: a build root that a power cut interrupts is thrown away, and dpkg waits for
/// the disk several times per package.
const NEEDLESS: &[i64] = &[
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_msync,
    libc::SYS_sync,
    libc::SYS_syncfs,
    libc::SYS_sync_file_range,
];

/// Families of sockets that there are (`linux/socket.h`): UNIX, INET, INET6, and NETLINK for [`NETLINK_ROUTE`]. The
/// sandbox's network namespace holds nothing but itself, but not every family knows namespaces: AF_VSOCK reaches the
/// hypervisor, AF_ALG and AF_BLUETOOTH code of the kernel that no package needs.
const SOCKETS: [u32; 3] = [libc::AF_UNIX as u32, libc::AF_INET as u32, libc::AF_INET6 as u32];
/// What `getaddrinfo` and `ip` ask; its other protocols lead to netfilter, audit and more.
const NETLINK_ROUTE: u32 = 0;

/// Requests to a terminal that would write into what its user types (`asm-generic/ioctls.h`, `linux/tiocl.h`).
const TERMINAL_INPUT: [u32; 2] = [libc::TIOCSTI as u32, 0x541c];

/// `clone` flags that make namespaces (`linux/sched.h`: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET).
const NAMESPACE_FLAGS: u32 = 0x7e02_0000;

// Offsets in struct seccomp_data (linux/seccomp.h).
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
/// The low halves of the arguments, on machines that have those first.
const OFFSET_FIRST_ARGUMENT: u32 = 16;
const OFFSET_SECOND_ARGUMENT: u32 = 24;
const OFFSET_THIRD_ARGUMENT: u32 = 32;

// Instructions of classic BPF (linux/bpf_common.h).
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
#[cfg(target_arch = "x86_64")]
const JUMP_SET: u16 = 0x45;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;

/// Installs the filter on this process and all it will start; returns the descriptor on which the calls arrive.
pub(super) fn install() -> io::Result<OwnedFd> {
    let filter = program();
    rustix::thread::set_no_new_privs(true)?;
    // A call that is being answered should not be interrupted and started again by any signal but a deadly one
    // (Linux 5.19); without that the answer to a repeated mknod would be EEXIST.
    let wait_killable = 1 << 5;
    load(&filter, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | wait_killable).or_else(|error| {
        if error.raw_os_error() == Some(libc::EINVAL) {
            load(&filter, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)
        } else {
            Err(error)
        }
    })
}

fn load(filter: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<OwnedFd> {
    let length = u16::try_from(filter.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog {
        len: length,
        filter: filter.as_ptr().cast_mut(),
    };
    #[expect(unsafe_code, reason = "seccomp has no wrapper")]
    // SAFETY: `program` points at `filter`, which lives through the call and is only read.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "a raw descriptor gets its owner")]
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn program() -> Vec<libc::sock_filter> {
    let mut code = vec![
        statement(LOAD, OFFSET_ARCHITECTURE),
        jump(JUMP_EQUAL, ARCHITECTURE, 1, 0),
        statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        statement(LOAD, OFFSET_NUMBER),
    ];
    #[cfg(target_arch = "x86_64")]
    code.extend([
        jump(JUMP_SET, FOREIGN_BIT, 0, 1),
        statement(RETURN, refuse(libc::ENOSYS)),
    ]);
    let groups = [
        (NOTIFIED, libc::SECCOMP_RET_USER_NOTIF),
        (FORBIDDEN, refuse(libc::EPERM)),
        (UNKNOWN, refuse(libc::ENOSYS)),
        (NEEDLESS, refuse(0)),
    ];
    for (calls, action) in groups {
        for (index, call) in calls.iter().enumerate() {
            // To the return right behind this group; from the last one, past it when it is another call.
            let rest = (calls.len() - index - 1) as u8;
            code.push(jump(JUMP_EQUAL, *call as u32, rest, u8::from(rest == 0)));
        }
        code.push(statement(RETURN, action));
    }
    for (call, block) in [
        (libc::SYS_clone, no_namespaces()),
        (libc::SYS_socket, known_sockets()),
        (libc::SYS_socketpair, known_sockets()),
        (libc::SYS_ioctl, no_terminal_input()),
    ] {
        // Each block ends the program.
        code.push(jump(JUMP_EQUAL, call as u32, 0, block.len() as u8));
        code.extend(block);
    }
    code.push(ALLOW);
    code
}

const ALLOW: libc::sock_filter = statement(RETURN, libc::SECCOMP_RET_ALLOW);

/// The caller of `clone` may start processes and threads, and no namespaces.
fn no_namespaces() -> Vec<libc::sock_filter> {
    vec![
        statement(LOAD, OFFSET_FIRST_ARGUMENT),
        statement(AND, NAMESPACE_FLAGS),
        jump(JUMP_EQUAL, 0, 1, 0),
        statement(RETURN, refuse(libc::EPERM)),
        ALLOW,
    ]
}

/// The caller of `socket` gets what this kernel seems to have.
fn known_sockets() -> Vec<libc::sock_filter> {
    let mut code = vec![statement(LOAD, OFFSET_FIRST_ARGUMENT)];
    for family in SOCKETS {
        code.extend([jump(JUMP_EQUAL, family, 0, 1), ALLOW]);
    }
    code.extend([
        jump(JUMP_EQUAL, libc::AF_NETLINK as u32, 1, 0),
        statement(RETURN, refuse(libc::EAFNOSUPPORT)),
        statement(LOAD, OFFSET_THIRD_ARGUMENT),
        jump(JUMP_EQUAL, NETLINK_ROUTE, 1, 0),
        statement(RETURN, refuse(libc::EPROTONOSUPPORT)),
        ALLOW,
    ]);
    code
}

fn no_terminal_input() -> Vec<libc::sock_filter> {
    let mut code = vec![statement(LOAD, OFFSET_SECOND_ARGUMENT)];
    for request in TERMINAL_INPUT {
        code.extend([
            jump(JUMP_EQUAL, request, 0, 1),
            statement(RETURN, refuse(libc::EPERM)),
        ]);
    }
    code.push(ALLOW);
    code
}

const fn refuse(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

const fn statement(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

fn jump(code: u16, k: u32, yes: u8, no: u8) -> libc::sock_filter {
    libc::sock_filter {
        code,
        jt: yes,
        jf: no,
        k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interprets the filter, as the kernel would, for a call with one argument, or with arguments.
    fn verdict(architecture: u32, number: u32, argument: u32) -> u32 {
        verdict_on(architecture, number, [argument, 0, 0])
    }

    fn verdict_on(architecture: u32, number: u32, arguments: [u32; 3]) -> u32 {
        let code = program();
        let (mut accumulator, mut at) = (0u32, 0usize);
        loop {
            let instruction = &code[at];
            at += 1;
            let test = match instruction.code {
                LOAD => {
                    accumulator = match instruction.k {
                        OFFSET_NUMBER => number,
                        OFFSET_ARCHITECTURE => architecture,
                        OFFSET_FIRST_ARGUMENT => arguments[0],
                        OFFSET_SECOND_ARGUMENT => arguments[1],
                        OFFSET_THIRD_ARGUMENT => arguments[2],
                        other => panic!("load from {other}"),
                    };
                    continue;
                }
                AND => {
                    accumulator &= instruction.k;
                    continue;
                }
                RETURN => return instruction.k,
                JUMP_EQUAL => accumulator == instruction.k,
                0x45 => accumulator & instruction.k != 0,
                other => panic!("instruction {other:#x}"),
            };
            at += usize::from(if test { instruction.jt } else { instruction.jf });
        }
    }

    #[test]
    fn each_listed_call_gets_its_verdict_and_the_rest_pass() {
        let special: Vec<i64> = [NOTIFIED, FORBIDDEN, UNKNOWN].concat();
        for number in 0..600 {
            let expected = match i64::from(number) {
                call if NOTIFIED.contains(&call) => libc::SECCOMP_RET_USER_NOTIF,
                call if FORBIDDEN.contains(&call) => libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
                call if UNKNOWN.contains(&call) => libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
                call if NEEDLESS.contains(&call) => libc::SECCOMP_RET_ERRNO,
                // Family 0 is none.
                libc::SYS_socket | libc::SYS_socketpair => refuse(libc::EAFNOSUPPORT),
                _ => libc::SECCOMP_RET_ALLOW,
            };
            assert_eq!(verdict(ARCHITECTURE, number, 0), expected, "call {number}");
        }
        assert_eq!(
            special.len(),
            special.iter().collect::<std::collections::BTreeSet<_>>().len()
        );
    }

    #[test]
    fn foreign_instruction_sets_do_not_pass() {
        assert_eq!(verdict(0x4000_0003, 1, 0), libc::SECCOMP_RET_KILL_PROCESS);
        #[cfg(target_arch = "x86_64")]
        assert_eq!(
            verdict(ARCHITECTURE, FOREIGN_BIT | 1, 0),
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32
        );
    }

    #[test]
    fn only_sockets_that_packages_need_are_there() {
        for call in [libc::SYS_socket, libc::SYS_socketpair] {
            for family in 0..64 {
                for protocol in 0..32 {
                    let expected = match (family, protocol) {
                        (1 | 2 | 10, _) | (16, 0) => libc::SECCOMP_RET_ALLOW,
                        (16, _) => refuse(libc::EPROTONOSUPPORT),
                        _ => refuse(libc::EAFNOSUPPORT),
                    };
                    let found = verdict_on(ARCHITECTURE, call as u32, [family, 3, protocol]);
                    assert_eq!(found, expected, "family {family}, protocol {protocol}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_typed_into_a_terminal() {
        let ioctl = |request| verdict_on(ARCHITECTURE, libc::SYS_ioctl as u32, [0, request, 0]);
        assert_eq!(ioctl(libc::TIOCSTI as u32), refuse(libc::EPERM));
        assert_eq!(ioctl(0x541c), refuse(libc::EPERM));
        assert_eq!(ioctl(libc::TIOCGWINSZ as u32), libc::SECCOMP_RET_ALLOW);
    }

    #[test]
    fn a_process_may_fork_but_not_make_namespaces() {
        let clone = libc::SYS_clone as u32;
        assert_eq!(
            verdict(ARCHITECTURE, clone, libc::SIGCHLD as u32),
            libc::SECCOMP_RET_ALLOW
        );
        let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        assert_eq!(verdict(ARCHITECTURE, clone, libc::CLONE_NEWUSER as u32), refused);
    }
}
