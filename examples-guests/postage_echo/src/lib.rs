//! The demos of Postage as a module: an echo of messages, one whose messages reach every copy, and an echo by rpc. Which
//! message goes to which function, says `[interfaces.x.handlers]`.

use wasmcage_guest::service;

#[service]
mod postage_echo {
    use serde_json::Value;
    use wasmcage_guest::amqp::RpcReply;
    use wasmcage_guest::{Error, Result, context, info};

    /// Writes what it is told into the log.
    pub fn echo(content: Value) {
        info!("echo: {}", content["parameters"]);
    }

    /// The same, by another name, to see which of the two was reached.
    pub fn shout(content: Value) {
        info!("shout: {}", content["parameters"]);
    }

    /// Gives back what it is told, or what it is told to answer.
    pub fn rpc_echo(content: Value) -> Result<RpcReply> {
        context::describe("echo");
        let parameters = &content["parameters"];
        match parameters["fail"].as_str() {
            Some("misread") => Err(Error::bad_arguments("a secret misfit")),
            Some("refuse") => Err(Error::refused("a secret reason")),
            Some("fail") => Err(Error::failed("a secret cause")),
            Some("panic") => panic!("a secret panic"),
            Some("error") => Ok(RpcReply::error("no such account")),
            Some("exception") => Ok(RpcReply::exception("ValueError", "not a number")),
            _ => {
                let reply = RpcReply::value(parameters.clone());
                let reply = parameters["say"].as_str().map_or(reply.clone(), |text| reply.message(text));
                Ok(match parameters["then"].as_str() {
                    Some(function) => reply.then(function, &content),
                    None => reply,
                })
            }
        }
    }

    /// A filter: lets pass what is not marked as quiet, and marks it as seen.
    pub fn loud_only(mut content: Value) -> Result<Value> {
        if content["parameters"]["quiet"] == true {
            return Err(Error::refused("it is quiet"));
        }
        content["parameters"]["seen"] = true.into();
        Ok(content)
    }
}
