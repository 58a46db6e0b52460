//! Plain HTTP through a proxy as caching proxies want it: `GET http://host/path` (RFC 9112 section 3.2.2). ureq knows
//! only tunnels (`CONNECT`), which those refuse for port 80.

use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, DefaultConnector, NextTimeout, Transport,
};
use ureq::{Agent, Error};

/// An agent whose requests, sent to the proxy's address with the server's name in `Host`, reach the proxy in
/// absolute form.
pub(super) fn agent(config: ureq::config::Config) -> Agent {
    Agent::with_parts(
        config,
        DefaultConnector::new().chain(Absolute),
        DefaultResolver::default(),
    )
}

#[derive(Debug)]
struct Absolute;

impl<In: Transport> Connector<In> for Absolute {
    type Out = AbsoluteTransport<In>;

    fn connect(&self, _: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(AbsoluteTransport))
    }
}

#[derive(Debug)]
struct AbsoluteTransport<T>(T);

impl<T: Transport> Transport for AbsoluteTransport<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let output = self.0.buffers().output();
        let amount = match absolute_form(&output[..amount]) {
            Some(request) if request.len() <= output.len() => {
                output[..request.len()].copy_from_slice(&request);
                request.len()
            }
            Some(_) => return Err(Error::Other("the request is too long for a proxy".into())),
            None => amount,
        };
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.0.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }

    fn is_tls(&self) -> bool {
        self.0.is_tls()
    }
}

/// The request head with `http://` and its own `Host` before the path; `None` for what is no request head.
fn absolute_form(head: &[u8]) -> Option<Vec<u8>> {
    let path = head.strip_prefix(b"GET ").filter(|path| path.starts_with(b"/"))?;
    let host = head.split(|byte| *byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(5)?;
        name.eq_ignore_ascii_case(b"host:").then(|| value.trim_ascii())
    })?;
    Some([b"GET http://", host, path].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_moves_into_the_request_line() {
        let head = b"GET /a?b HTTP/1.1\r\nx: y\r\nHost: example.com:81\r\n\r\n";
        let wanted = b"GET http://example.com:81/a?b HTTP/1.1\r\nx: y\r\nHost: example.com:81\r\n\r\n";
        assert_eq!(absolute_form(head).as_deref(), Some(&wanted[..]));
        for other in [
            &b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n"[..],
            b"GET / HTTP/1.1\r\n\r\n",
            b"body",
            b"",
        ] {
            assert_eq!(absolute_form(other), None);
        }
    }
}
