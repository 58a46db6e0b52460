//! Packets that get lost on a machine's cable. The kernel's own emulator (netem) is in few kernels; nftables is in all
//! that run Kubernetes.

use anyhow::Result;

use super::network::Cable;
use crate::images::{command, finish};

/// A share of the packets of a cable is lost, both ways, for as long as this lives.
#[derive(Debug)]
pub struct Loss {
    namespace: String,
}

impl Loss {
    /// Loses `percent` of the packets.
    pub fn on(cable: &Cable, percent: u32) -> Result<Self> {
        let loss = Self {
            namespace: cable.namespace(),
        };
        let chain = |hook: &str, interface: &str| {
            format!(
                "chain {hook} {{ type filter hook {hook} priority raw; {interface} != \"lo\" \
                 numgen random mod 100 < {percent} counter drop; }}"
            )
        };
        let (come, go) = (chain("input", "iifname"), chain("output", "oifname"));
        loss.nft(&format!("table inet bench-loss {{\n{come}\n{go}\n}}"))?;
        Ok(loss)
    }

    fn nft(&self, text: &str) -> Result<Vec<u8>> {
        let mut nft = command("nsenter");
        nft.arg(format!("--net={}", self.namespace)).args(["nft", text]);
        finish(&mut nft).map(|output| output.stdout)
    }

    /// How many packets got lost so far.
    pub fn count(&self) -> Result<u64> {
        let text = String::from_utf8(self.nft("list table inet bench-loss")?)?;
        let counters = text.split("counter packets ").skip(1);
        let counts = counters.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        Ok(counts.sum())
    }
}

impl Drop for Loss {
    fn drop(&mut self) {
        drop(self.nft("delete table inet bench-loss"));
    }
}
