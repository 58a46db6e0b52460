//! Why a request failed, in terms that callers can map to a cause.

use std::error::Error;
use std::{fmt, io};

use rustls::CertificateError;

/// A failed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpError {
    /// The URL without credentials and query.
    pub url: String,
    /// What went wrong.
    pub fault: Fault,
}

/// What went wrong with a request. Texts are the client's own or the kernel's, never the server's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The host's name has no address, or nobody who knows answered.
    Dns,
    /// No connection.
    Connect(String),
    /// No complete answer in time.
    Timeout,
    /// No trust between the two sides.
    Tls(TlsFault),
    /// An answer with a status other than 2xx where only success is of use.
    Status(u16),
    /// More than so many bytes.
    TooLarge(usize),
    /// An answer that ends early or makes no sense, or a URL that is none.
    Broken(String),
}

/// Why TLS failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsFault {
    /// No trusted authority signed the server's certificate.
    UnknownIssuer,
    /// The certificate is for another host.
    WrongName,
    /// By this machine's clock the certificate is no longer valid.
    Expired,
    /// By this machine's clock the certificate is not valid yet.
    NotYetValid,
    /// The server ended the handshake: mostly it doesn't take the client's certificate.
    Refused(String),
    /// Anything else.
    Other(String),
}

impl HttpError {
    pub(super) fn new(url: &str, fault: Fault) -> Self {
        Self {
            url: url.to_owned(),
            fault,
        }
    }

    pub(super) fn tls(url: &str, what: impl fmt::Display) -> Self {
        Self::new(url, Fault::Tls(TlsFault::Other(what.to_string())))
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.url.is_empty() {
            self.fault.fmt(f)
        } else {
            write!(f, "{}: {}", self.url, self.fault)
        }
    }
}

impl Error for HttpError {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns => f.write_str("the host's name can't be resolved"),
            Self::Connect(why) => write!(f, "no connection: {why}"),
            Self::Timeout => f.write_str("no complete answer in time"),
            Self::Tls(fault) => write!(f, "TLS: {fault}"),
            Self::Status(status) => write!(f, "answered with status {status}"),
            Self::TooLarge(limit) => write!(f, "answered with more than {limit} bytes"),
            Self::Broken(why) => f.write_str(why),
        }
    }
}

impl fmt::Display for TlsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownIssuer => f.write_str("the server's certificate is signed by no trusted authority"),
            Self::WrongName => f.write_str("the server's certificate is for another host"),
            Self::Expired => f.write_str("the server's certificate has expired by this machine's clock"),
            Self::NotYetValid => {
                f.write_str("the server's certificate is not valid yet by this machine's clock")
            }
            Self::Refused(alert) => write!(f, "the server refused this client ({alert})"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

/// Puts ureq's error into our terms.
pub(super) fn of(url: &str, error: ureq::Error) -> HttpError {
    let fault = match error {
        ureq::Error::HostNotFound | ureq::Error::Timeout(ureq::Timeout::Resolve) => Fault::Dns,
        ureq::Error::Timeout(ureq::Timeout::Connect) => Fault::Connect("no answer in time".to_owned()),
        ureq::Error::Timeout(_) => Fault::Timeout,
        ureq::Error::ConnectionFailed => Fault::Connect("no address answers".to_owned()),
        ureq::Error::Rustls(error) => Fault::Tls(of_tls(&error)),
        ureq::Error::Tls(why) => Fault::Tls(TlsFault::Other(why.to_owned())),
        ureq::Error::Io(error) => of_io(&error),
        ureq::Error::LargeResponseHeader(_, limit) => Fault::TooLarge(limit),
        other => Fault::Broken(other.to_string()),
    };
    HttpError::new(url, fault)
}

/// Puts an error of a socket, or of TLS over it, into our terms.
pub(super) fn of_io(error: &io::Error) -> Fault {
    use io::ErrorKind;

    if let Some(tls) = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
    {
        return Fault::Tls(of_tls(tls));
    }
    match error.kind() {
        ErrorKind::ConnectionRefused
        | ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::NetworkDown
        | ErrorKind::AddrNotAvailable => Fault::Connect(error.to_string()),
        // A blocking socket's own time limit is `WouldBlock` on Linux.
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Fault::Timeout,
        _ => Fault::Broken(error.to_string()),
    }
}

fn of_tls(error: &rustls::Error) -> TlsFault {
    match error {
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsFault::UnknownIssuer,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                TlsFault::WrongName
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsFault::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                TlsFault::NotYetValid
            }
            other => TlsFault::Other(other.to_string()),
        },
        rustls::Error::AlertReceived(alert) => TlsFault::Refused(format!("{alert:?}")),
        other => TlsFault::Other(other.to_string()),
    }
}
