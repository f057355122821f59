//! Resource `http`: requests to one server. `config.rs` reads `[resources.x]`, `operation.rs` turns an operation into a
//! request, `redirect.rs` decides which redirections are followed, `error.rs` turns failures into the resource's
//! errors.
//!
//! The web client keeps the connections and shares them among requests; the resource's own pool counts requests.

mod config;
mod error;
mod operation;
mod redirect;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;

use self::config::ClientConfig;
use self::operation::ClientRequest;
use wasmcage_config::{ConfigError, Section};
use wasmcage_core::request::Deadline;
use wasmcage_resource::{Connection, Operation, OperationReply, Phase, ReplyStream, Resource, ResourceError};
use wasmcage_web_client::{Client, RequestBody, ResponseBody, Timeouts};

/// `[resources.x]` with `protocol = "http"`.
#[derive(Clone)]
pub(super) struct HttpResource {
    config: Arc<ClientConfig>,
    client: Client,
}

impl HttpResource {
    /// # Errors
    /// All mistakes of the section.
    pub(super) fn read(section: Section) -> Result<Self, ConfigError> {
        let config = ClientConfig::read(section)?;
        Ok(Self { client: Client::new(&config.client), config: Arc::new(config) })
    }

    /// Sends the request, follows redirections, and returns the head of the last response.
    async fn exchange(
        &self,
        operation: Operation,
        deadline: Deadline,
    ) -> Result<Response<ResponseBody>, ResourceError> {
        let config = &*self.config;
        let mut exchange = ClientRequest::new(config, operation)?;
        let times = Timeouts { connect: None, first_byte: None, between_bytes: None, deadline };
        let mut redirects = 0;
        loop {
            let body = RequestBody::Whole(exchange.body.clone());
            let response = self.client.send(exchange.head.clone(), body, times).await;
            let response = response.map_err(|error| error::of_request(&error, redirects > 0))?;
            if redirects == config.redirects {
                return Ok(response);
            }
            match redirect::next(config, exchange, &response) {
                Some(next) => exchange = next,
                None => return Ok(response),
            }
            redirects += 1;
        }
    }

    fn deadline(&self, deadline: Deadline) -> Deadline {
        deadline.within(self.config.timeout)
    }
}

#[async_trait]
impl Resource for HttpResource {
    fn check(&self, operation: &Operation) -> Result<(), ResourceError> {
        ClientRequest::new(&self.config, operation.clone()).map(drop)
    }

    fn can_roll_back(&self, _operation: &Operation) -> bool {
        false
    }

    async fn connect(&self, _deadline: Deadline) -> Result<Box<dyn Connection>, ResourceError> {
        Ok(Box::new(self.clone()))
    }
}

/// A sent request cannot be undone, so commit and rollback do nothing.
#[async_trait]
impl Connection for HttpResource {
    async fn begin(&mut self, options: &[(String, String)], _deadline: Deadline) -> Result<(), ResourceError> {
        match options.first() {
            None => Ok(()),
            Some((name, _)) => {
                let text = format!("requests have no option {name:?}");
                Err(ResourceError::harmless(Phase::Begin, ResourceError::BAD_OPERATION, text))
            }
        }
    }

    async fn execute(&mut self, operation: Operation, deadline: Deadline) -> Result<OperationReply, ResourceError> {
        let response = self.exchange(operation, self.deadline(deadline)).await?;
        let max = self.config.response_bytes_max;
        let mut reply = head(&response);
        let mut body = response.into_body();
        if body.size_hint().lower() > max as u64 {
            return Err(error::too_large(max));
        }
        let mut whole = BytesMut::new();
        while let Some(part) = next_part(&mut body).await? {
            if whole.len() + part.len() > max {
                return Err(error::too_large(max));
            }
            whole.extend_from_slice(&part);
        }
        reply.body = whole.freeze();
        Ok(reply)
    }

    async fn commit(&mut self, _deadline: Deadline) -> Result<(), ResourceError> {
        Ok(())
    }

    async fn rollback(&mut self, _deadline: Deadline) -> Result<(), ResourceError> {
        Ok(())
    }

    async fn open(
        mut self: Box<Self>,
        operation: Operation,
        options: &[(String, String)],
        deadline: Deadline,
    ) -> Result<(OperationReply, Box<dyn ReplyStream>), ResourceError> {
        self.begin(options, deadline).await?;
        let response = self.exchange(operation, self.deadline(deadline)).await?;
        Ok((head(&response), Box::new(ResponseStream(response.into_body()))))
    }

    async fn is_healthy(&mut self) -> bool {
        true
    }
}

/// A response that is passed on in parts, as they arrive.
struct ResponseStream(ResponseBody);

#[async_trait]
impl ReplyStream for ResponseStream {
    async fn next(&mut self) -> Result<Option<Bytes>, ResourceError> {
        next_part(&mut self.0).await
    }
}

/// The next bytes of a body; trailers are not passed on.
async fn next_part(body: &mut ResponseBody) -> Result<Option<Bytes>, ResourceError> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(error)) => return Err(error::of_request(&error, true)),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if !data.is_empty() => return Ok(Some(data)),
                Ok(_) | Err(_) => {}
            },
        }
    }
}

fn head(response: &Response<ResponseBody>) -> OperationReply {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = response.headers().iter().map(|(name, value)| (name.as_str().to_owned(), text(value)));
    OperationReply { status: StatusCode::as_u16(&response.status()), headers: headers.collect(), body: Bytes::new() }
}
