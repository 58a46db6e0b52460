//! What root of the sandbox may do to the kernel: what packages' scripts need of it and no more. Root of a user
//! namespace has every capability over that namespace, and most holes of the last years were reached with
//! `CAP_NET_ADMIN` or `CAP_SYS_ADMIN` there.

use std::io;

/// Capabilities that stay (`linux/capability.h`): CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, KILL, SETGID,
/// SETUID, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT, MKNOD, SETFCAP.
const KEPT: [u32; 13] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 18, 27, 31];
/// No kernel knows so many.
const END: u32 = 64;

/// Takes all other capabilities from what this process will execute, for good.
pub(super) fn drop_capabilities() -> io::Result<()> {
    for capability in (0..END).filter(|number| !KEPT.contains(number)) {
        #[expect(unsafe_code, reason = "prctl(PR_CAPBSET_DROP) takes integers")]
        // SAFETY: this request takes an integer and touches no memory.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
        if result != 0 {
            let error = io::Error::last_os_error();
            // The first number that this kernel does not know.
            if error.raw_os_error() == Some(libc::EINVAL) {
                return Ok(());
            }
            return Err(error);
        }
    }
    Ok(())
}
