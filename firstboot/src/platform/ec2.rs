//! EC2's instance metadata service, version 2 only: a session token by PUT, then everything with the token
//! (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>). Version 1 lets
//! any forwarder of requests read it.

use std::net::IpAddr;

use serde::Deserialize;

use super::server::{self, MetadataServer};
use super::{Platform, Raw};
use crate::failure::Failure;
use crate::http::Answer;

/// How long a token is asked to live, in seconds: one boot.
const TOKEN_SECONDS: &str = "300";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    instance_id: String,
    private_ip: Option<IpAddr>,
    availability_zone: String,
    region: String,
}

pub(super) fn fetch(server: &MetadataServer) -> Result<Raw, Failure> {
    let mut session = Session::open(server)?;
    let user_data = server::succeeded(session.ask("/latest/user-data")?)?;
    let identity = server::succeeded(session.ask("/latest/dynamic/instance-identity/document")?)?;
    let identity: Identity = server::json(&identity, "the instance identity document")?;
    let name = server::succeeded(session.ask("/latest/meta-data/local-hostname")?)?;
    // With a DHCP option set of several domains the answer has them all, divided by blanks.
    let name = server::text(&name, "local-hostname")?;
    let name = name.split(' ').next().unwrap_or_default().to_owned();
    let provider_id = format!("aws:///{}/{}", identity.availability_zone, identity.instance_id);
    Ok(Raw {
        disk: None,
        platform: Platform::Ec2,
        source: "instance metadata service".to_owned(),
        user_data,
        instance_id: identity.instance_id,
        host_name: Some(name),
        address: identity.private_ip,
        zone: Some(identity.availability_zone),
        region: Some(identity.region),
        provider_id: Some(provider_id),
    })
}

/// A session with the service.
struct Session<'a> {
    server: &'a MetadataServer,
    token: String,
}

impl<'a> Session<'a> {
    fn open(server: &'a MetadataServer) -> Result<Self, Failure> {
        let answer = server.put(
            "/latest/api/token",
            &[("x-aws-ec2-metadata-token-ttl-seconds", TOKEN_SECONDS)],
        )?;
        let token = server::text(&server::succeeded(answer)?, "the session token")?;
        Ok(Self { server, token })
    }

    /// GET with the token; a token that has expired (401) is replaced once.
    fn ask(&mut self, path: &str) -> Result<Answer, Failure> {
        let answer = self
            .server
            .ask(path, &[("x-aws-ec2-metadata-token", &self.token)])?;
        if answer.status != 401 {
            return Ok(answer);
        }
        *self = Self::open(self.server)?;
        self.server
            .ask(path, &[("x-aws-ec2-metadata-token", &self.token)])
    }
}
