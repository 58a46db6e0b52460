//! The two processes inside: the one that makes the namespaces and waits, and PID 1.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, getegid, geteuid, getppid, set_parent_process_death_signal,
    setrlimit, setsid, umask, waitpid,
};

use super::record::Recorder;
use super::request::{At, Reply, Request, SetupError, Step};
use super::supervisor::Supervisor;
use super::{ARGUMENT, children, filter, mounts, privileges};
use crate::tool::Tool;

/// Exit status of the command's process when it could not become the command.
const NOT_STARTED: i32 = 127;

/// Runs the inside of a sandbox if this process was started for it, and returns its exit code; `None` in an
/// ordinary run. Must be called while the process has one thread.
pub fn child_main() -> Option<ExitCode> {
    if std::env::args_os().nth(1)? != ARGUMENT {
        return None;
    }
    Some(match outer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Only reached when there is nobody to answer on the socket.
            let _ = writeln!(io::stderr(), "error: sandbox: {error}");
            ExitCode::FAILURE
        }
    })
}

/// The outer process: reads the request, makes the namespaces, starts PID 1 in them and waits.
fn outer() -> io::Result<()> {
    let mut socket = UnixStream::from(duplicate(0)?);
    replace_input("/dev/null")?;
    let mut text = Vec::new();
    socket.read_to_end(&mut text)?;
    let request: Request = serde_json::from_slice(&text)?;
    if let Err(error) = enter_namespaces() {
        return reply_failure(&mut socket, error);
    }
    // Changing credentials clears the signal, so it is armed after that; then look whether it came too late.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid().map(Pid::as_raw_pid) != i32::try_from(request.parent).ok() {
        return Err(io::Error::other("the caller is gone"));
    }
    let (alive, watched) = UnixStream::pair()?;
    match fork()? {
        Some(pid) => {
            drop((socket, watched));
            let (_, status) = waitpid(Some(pid), WaitOptions::empty())?.ok_or(io::ErrorKind::NotFound)?;
            drop(alive);
            if status.exit_status() == Some(0) {
                Ok(())
            } else {
                Err(io::Error::other("PID 1 died"))
            }
        }
        None => {
            drop(alive);
            let code = i32::from(first_process(&mut socket, &watched, request).is_err());
            exit_now(code)
        }
    }
}

/// Leaves the host's namespaces. Maps the caller's user and group to 0; there are no other ids.
fn enter_namespaces() -> Result<(), SetupError> {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let flags = UnshareFlags::NEWUSER
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWCGROUP;
    #[expect(unsafe_code, reason = "unshare of file descriptors could break I/O safety")]
    // SAFETY: the flags do not hold CLONE_FILES.
    unsafe { unshare_unsafe(flags) }.at(Step::Namespaces, "unshare")?;
    write_once("/proc/self/setgroups", "deny").at(Step::IdMap, "write /proc/self/setgroups")?;
    write_once("/proc/self/uid_map", &format!("0 {user} 1")).at(Step::IdMap, "write /proc/self/uid_map")?;
    write_once("/proc/self/gid_map", &format!("0 {group} 1")).at(Step::IdMap, "write /proc/self/gid_map")
}

/// PID 1: runs everything and answers.
fn first_process(socket: &mut UnixStream, watched: &UnixStream, request: Request) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent is outside this PID namespace, so `getppid` can't tell; its end of the pair can.
    watched.set_nonblocking(true)?;
    if !matches!((&*watched).read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
        return Err(io::Error::other("the outer process is gone"));
    }
    match run(request) {
        Ok(reply) => socket.write_all(&serde_json::to_vec(&reply)?),
        Err(error) => reply_failure(socket, error),
    }
}

fn run(request: Request) -> Result<Reply, SetupError> {
    mounts::assemble(&request.root, &request.binds, &request.limits)?;
    replace_input("/dev/null").at(Step::Mounts, "open /dev/null")?;
    rustix::system::sethostname(b"localhost").at(Step::Other, "set the host name")?;
    rustix::system::setdomainname(b"").at(Step::Other, "set the domain name")?;
    umask(rustix::fs::Mode::from_raw_mode(0o022));
    raise_file_limit();
    let recorder = Recorder::new(&request.owners).at(Step::Root, "look at the root directory")?;
    let children = children::child_signals().at(Step::Other, "watch for ended processes")?;
    let (mut ours, theirs) = UnixStream::pair().at(Step::Other, "make a socket pair")?;
    let command = match fork().at(Step::Other, "fork")? {
        Some(pid) => pid,
        None => {
            drop((ours, children, recorder));
            command_process(&theirs, &request)
        }
    };
    drop(theirs);
    let mut failure = Vec::new();
    let listener = receive_descriptor(&ours, &mut failure);
    // Ends when the command's process has become the command.
    let _ = ours.read_to_end(&mut failure);
    if let Ok(Start { step, detail, errno }) = serde_json::from_slice(&failure) {
        return Err(SetupError { step, detail, errno });
    }
    let listener = listener.at(Step::Filter, "receive the notification descriptor")?;
    let mut supervisor = Supervisor::new(listener, recorder, request.limits);
    let ending = supervisor
        .serve(command, &children)
        .at(Step::Other, "answer system calls")?;
    let (owners, counts) = supervisor
        .finish()
        .at(Step::Other, "collect the recorded owners")?;
    Ok(Reply::Finished {
        ending,
        owners,
        counts,
    })
}

/// What the command's process reports when it can't become the command.
#[derive(serde::Serialize, serde::Deserialize)]
struct Start {
    step: Step,
    detail: String,
    errno: i32,
}

/// The process that becomes the command. Whatever happens, it doesn't return.
fn command_process(supervisor: &UnixStream, request: &Request) -> ! {
    let error = match become_command(supervisor, request) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let start = Start {
        step: error.step,
        detail: error.detail,
        errno: error.errno,
    };
    if let Ok(text) = serde_json::to_vec(&start) {
        let _ = (&*supervisor).write_all(&text);
    }
    exit_now(NOT_STARTED)
}

fn become_command(
    supervisor: &UnixStream,
    request: &Request,
) -> Result<std::convert::Infallible, SetupError> {
    setsid().at(Step::Other, "start a session")?;
    request.limits.apply().at(Step::Other, "set limits")?;
    privileges::drop_capabilities().at(Step::Other, "drop capabilities")?;
    let listener = filter::install().at(Step::Filter, "install the system call filter")?;
    send_descriptor(supervisor, &listener).at(Step::Filter, "send the notification descriptor")?;
    drop(listener);
    let Some((program, arguments)) = request.arguments.split_first() else {
        // The probe tests itself: the supervisor must be listening by now, and is once the socket is closed.
        let _ = supervisor.shutdown(std::net::Shutdown::Both);
        exit_now(i32::from(super::probe::try_chown().is_err()));
    };
    let mut tool = Tool::new(program).args(arguments);
    for (name, value) in &request.environment {
        tool = tool.env(name, value);
    }
    // `exec` also gives back the default signal actions and an empty signal mask.
    let error = tool.into_command().exec();
    Err(error).at(Step::Command, format!("start {}", program.to_string_lossy()))
}

/// Room for the descriptors that pin recorded inodes.
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    // Best effort: only a filesystem without extended attributes needs many.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

fn reply_failure(socket: &mut UnixStream, error: SetupError) -> io::Result<()> {
    let reply = Reply::Failed {
        step: error.step,
        detail: error.detail,
        errno: error.errno,
    };
    socket.write_all(&serde_json::to_vec(&reply)?)
}

/// The kernel takes these files in one write only.
fn write_once(path: &str, text: &str) -> io::Result<()> {
    File::options().write(true).open(path)?.write_all(text.as_bytes())
}

fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    #[expect(unsafe_code, reason = "standard input is borrowed by number")]
    // SAFETY: descriptor 0 is open: the caller made it the socket.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    borrowed.try_clone_to_owned()
}

/// Makes the file at `path` standard input.
fn replace_input(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    #[expect(unsafe_code, reason = "dup2 onto a descriptor by number")]
    // SAFETY: nothing in this process owns descriptor 0.
    let result = unsafe { libc::dup2(file.as_raw_fd(), 0) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Forks; `None` in the child.
fn fork() -> io::Result<Option<Pid>> {
    #[expect(unsafe_code, reason = "fork")]
    // SAFETY: this process has one thread, so the child finds every lock free.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(Pid::from_raw(pid))
    }
}

/// Ends a forked process without running what belongs to its parent.
fn exit_now(code: i32) -> ! {
    #[expect(unsafe_code, reason = "_exit")]
    // SAFETY: has no preconditions.
    unsafe {
        libc::_exit(code)
    }
}

fn send_descriptor(socket: &UnixStream, descriptor: &OwnedFd) -> io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::os::fd::AsFd;
    let fds = [descriptor.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(
        socket,
        &[io::IoSlice::new(b"!")],
        &mut control,
        SendFlags::empty(),
    )?;
    Ok(())
}

/// Receives what [`send_descriptor`] sent; where that was something else, it goes to `other`.
fn receive_descriptor(socket: &UnixStream, other: &mut Vec<u8>) -> io::Result<OwnedFd> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(
        socket,
        &mut [io::IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    descriptors.next().and_then(|mut fds| fds.next()).ok_or_else(|| {
        other.push(byte[0]);
        io::ErrorKind::InvalidData.into()
    })
}
