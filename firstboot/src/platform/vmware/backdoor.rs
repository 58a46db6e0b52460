//! VMware's RPC between guest and host, over the I/O port that the hypervisor catches for any program of the guest
//! (open-vm-tools: `lib/include/backdoor_def.h`, `lib/message/message.c`). Only the slow way that moves four bytes at
//! a time: a document has few.

use std::io::{self, Error, ErrorKind};

use super::super::MAX_DOCUMENT;
use super::GuestInfo;

/// Magic number of the channel for RPC to the host (`RPCI`).
const RPCI: u32 = 0x4943_5052;
/// In the status: the step succeeded.
const SUCCESS: u32 = 0x0001_0000;
/// Encodings grow a document: the most that is taken from the host.
const MAX_VALUE: usize = 2 * MAX_DOCUMENT;

/// The steps of a message, as the upper half of the command.
#[derive(Clone, Copy)]
enum Step {
    Open = 0,
    SendSize = 1,
    SendData = 2,
    ReceiveSize = 3,
    ReceiveData = 4,
    ReceiveDone = 5,
    Close = 6,
}

/// What the hypervisor leaves in the registers.
#[derive(Debug, Clone, Copy)]
struct Registers {
    data: u32,
    status: u32,
    port: u32,
}

/// Makes a step: the parameter and the number of the channel go in.
type Caller<'a> = &'a mut dyn FnMut(Step, u32, u32) -> Registers;

/// The real hypervisor.
pub(in super::super) struct Backdoor;

impl GuestInfo for Backdoor {
    fn get(&self, key: &str) -> io::Result<Option<Vec<u8>>> {
        if !hypervisor::is_vmware() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the processor is not VMware's",
            ));
        }
        let answer = ask(
            &mut hypervisor::call,
            format!("info-get guestinfo.{key}").as_bytes(),
        )?;
        match answer.split_at_checked(2) {
            Some((b"1 ", value)) => Ok(Some(value.to_vec())),
            // `0 No value found`
            Some((b"0 ", _)) => Ok(None),
            _ => Err(Error::new(
                ErrorKind::InvalidData,
                "the host's answer has no status",
            )),
        }
    }
}

/// Sends one message and reads the answer.
fn ask(call: Caller<'_>, message: &[u8]) -> io::Result<Vec<u8>> {
    let opened = call(Step::Open, RPCI, 0);
    succeeded(opened, "open a channel")?;
    let channel = opened.port >> 16;
    let answer = exchange(call, channel, message);
    call(Step::Close, 0, channel);
    answer
}

fn exchange(call: Caller<'_>, channel: u32, message: &[u8]) -> io::Result<Vec<u8>> {
    let size = u32::try_from(message.len()).map_err(Error::other)?;
    succeeded(call(Step::SendSize, size, channel), "send the size")?;
    for chunk in message.chunks(4) {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        succeeded(call(Step::SendData, u32::from_le_bytes(word), channel), "send")?;
    }
    let announced = call(Step::ReceiveSize, 0, channel);
    succeeded(announced, "receive the size")?;
    let (size, id) = (announced.data as usize, announced.port >> 16);
    if size > MAX_VALUE {
        return Err(Error::new(
            ErrorKind::FileTooLarge,
            format!("more than {MAX_VALUE} bytes"),
        ));
    }
    let mut answer = Vec::with_capacity(size + 3);
    while answer.len() < size {
        let received = call(Step::ReceiveData, id, channel);
        succeeded(received, "receive")?;
        answer.extend(received.data.to_le_bytes());
    }
    answer.truncate(size);
    succeeded(call(Step::ReceiveDone, id, channel), "end the answer")?;
    Ok(answer)
}

fn succeeded(registers: Registers, what: &str) -> io::Result<()> {
    if registers.status & SUCCESS == 0 {
        return Err(Error::other(format!(
            "{what}: the host answers {:#x}",
            registers.status
        )));
    }
    Ok(())
}

#[cfg(target_arch = "x86_64")]
mod hypervisor {
    use std::arch::asm;
    use std::arch::x86_64::__cpuid;

    use super::{Registers, Step};

    /// In eax: this is no ordinary access to the port.
    const MAGIC: u32 = 0x564d_5868;
    const PORT: u32 = 0x5658;
    /// Command: RPC.
    const MESSAGE: u32 = 0x1e;

    /// Whether the hypervisor says by `cpuid` that it is VMware's. On any other the port is out of bounds.
    pub(super) fn is_vmware() -> bool {
        let has_hypervisor = __cpuid(1).ecx & (1 << 31) != 0;
        let vendor = || {
            let leaf = __cpuid(0x4000_0000);
            [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat()
        };
        has_hypervisor && vendor() == b"VMwareVMware"
    }

    #[expect(unsafe_code, reason = "the hypervisor is called by an instruction")]
    pub(super) fn call(step: Step, parameter: u32, channel: u32) -> Registers {
        let mut data = u64::from(parameter);
        let mut status = MESSAGE | ((step as u32) << 16);
        let mut port = PORT | (channel << 16);
        // SAFETY: `is_vmware` was true, so the hypervisor catches the access, even of a program without rights to
        // ports, and changes the named registers only. rbx is the compiler's own, so it is swapped in and out.
        unsafe {
            asm!(
                "xchg {data}, rbx",
                "in eax, dx",
                "xchg {data}, rbx",
                data = inout(reg) data,
                inout("eax") MAGIC => _,
                inout("ecx") status,
                inout("edx") port,
                inout("esi") 0_u32 => _,
                inout("edi") 0_u32 => _,
                options(nostack),
            );
        }
        Registers {
            data: data as u32,
            status,
            port,
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod hypervisor {
    use super::{Registers, Step};

    /// The port exists on x86 alone.
    pub(super) fn is_vmware() -> bool {
        false
    }

    pub(super) fn call(_: Step, _: u32, _: u32) -> Registers {
        Registers {
            data: 0,
            status: 0,
            port: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANNEL: u32 = 3;
    const ID: u32 = 7;

    /// A host as open-vm-tools sees it: says how big the answer is, then hands it out word by word.
    struct FakeHost {
        asked: Vec<u8>,
        size: usize,
        answer: Vec<u8>,
        announced: u32,
        closed: bool,
    }

    impl FakeHost {
        fn answering(answer: &[u8]) -> Self {
            Self {
                asked: Vec::new(),
                size: 0,
                answer: answer.to_vec(),
                announced: answer.len() as u32,
                closed: false,
            }
        }

        fn step(&mut self, step: Step, parameter: u32, channel: u32) -> Registers {
            assert!(matches!(step, Step::Open) || channel == CHANNEL);
            let reply = |data: u32, high: u32| Registers {
                data,
                status: SUCCESS,
                port: high << 16,
            };
            match step {
                Step::Open => {
                    assert_eq!(parameter, RPCI);
                    reply(0, CHANNEL)
                }
                Step::SendSize => {
                    self.size = parameter as usize;
                    reply(0, 0)
                }
                Step::SendData => {
                    self.asked.extend(parameter.to_le_bytes());
                    reply(0, 0)
                }
                Step::ReceiveSize => reply(self.announced, ID),
                Step::ReceiveData => {
                    assert_eq!(parameter, ID);
                    let mut word = [0; 4];
                    let count = self.answer.len().min(4);
                    for (to, from) in word.iter_mut().zip(self.answer.drain(..count)) {
                        *to = from;
                    }
                    reply(u32::from_le_bytes(word), 0)
                }
                Step::ReceiveDone => reply(0, 0),
                Step::Close => {
                    self.closed = true;
                    reply(0, 0)
                }
            }
        }
    }

    #[test]
    fn a_message_goes_out_and_its_answer_comes_in_by_words() {
        let mut host = FakeHost::answering(b"1 hello");
        let answer = ask(
            &mut |step, parameter, channel| host.step(step, parameter, channel),
            b"info-get x",
        );
        assert_eq!(answer.unwrap(), b"1 hello");
        assert_eq!(&host.asked[..host.size], b"info-get x");
        assert!(host.closed);
    }

    #[test]
    fn a_hostile_size_is_refused_before_memory_is_taken_for_it() {
        let mut host = FakeHost::answering(b"");
        host.announced = u32::MAX;
        let answer = ask(
            &mut |step, parameter, channel| host.step(step, parameter, channel),
            b"x",
        );
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert!(host.closed);
    }

    #[test]
    fn a_refused_step_is_an_error() {
        let mut call = |_, _, _| Registers {
            data: 0,
            status: 0,
            port: 0,
        };
        assert!(
            ask(&mut call, b"x")
                .unwrap_err()
                .to_string()
                .contains("open a channel")
        );
    }
}
