//! An instance is a version in a wasmtime `Store`: one guest, which serves one request at a time. A failure inside ends this
//! instance only.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, Timeout, timeout_at};
use wasmtime::component::{self, ComponentExportIndex, ResourceTableError, TypedFunc, Val};
use wasmtime::{Store, Trap, UpdateDeadline};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::p2::bindings::Proxy;

use super::command;
use super::exports::{self, Exports, PlainFunction};
use super::limits::Limits;
use super::room::PoolPart;
use super::value::{self, Item, Side, Signature};
use crate::host_api::bindings::types;
use crate::host_api::{GuestState, Home};
use wasmcage_core::error::DispatchError;
use wasmcage_core::lanes;
use wasmcage_core::request::{Deadline, Payload, Reply, Request, RequestContext, StreamDeadline};
use wasmcage_core::telemetry::error_chain;
use wasmcage_core::values::Values;

/// The time after the deadline at which a host call that does not return is ended. The guest itself is stopped by the epoch.
const DEADLINE_GRACE: Duration = Duration::from_millis(10);
/// The largest number of bytes that are copied from the guest's memory in one call or host call.
const COPY_BYTES_MAX: usize = 128 << 20;

/// The names of the functions that the host calls, for its messages.
const HANDLE: &str = "wasmcage:cage/handler@0.1.0#handle";
const CALL: &str = "wasmcage:cage/service@0.1.0#call";
const FUNCTIONS: &str = "wasmcage:cage/service@0.1.0#functions";
const SAVE: &str = "wasmcage:cage/handover@0.1.0#save";
const RESTORE: &str = "wasmcage:cage/handover@0.1.0#restore";

type Handle = TypedFunc<(types::Request,), (Result<types::Response, types::Error>,)>;
type Functions = TypedFunc<(), (Vec<String>,)>;
type Call = TypedFunc<(String, types::Payload), (Result<types::Payload, types::Error>,)>;
type Save = TypedFunc<(), (Vec<u8>,)>;
type Restore = TypedFunc<(Vec<u8>,), (Result<(), String>,)>;

pub struct Instance {
    pub store: Store<GuestState>,
    pub guest: component::Instance,
    /// The `wasi:http@0.2` export, once it has been used.
    pub proxy: Option<Proxy>,
    handle: Option<Handle>,
    call: Option<Call>,
    /// The number of calls so far.
    pub uses: u64,
    /// Is true once a command has run, which happens only once in an instance.
    pub spent: bool,
    pub idle_since: Instant,
    /// The size of its memory after the start, in bytes.
    image_bytes: usize,
    /// The units of the pool, which are given back after the store was dropped.
    _part: PoolPart,
}

impl Instance {
    /// # Errors
    /// Returns `Trap` when the guest traps while it starts, `DeadlineExceeded`, `Overloaded` when the pool or the guests'
    /// memory has no room, or `Host` when its state cannot be made.
    pub async fn start(
        pre: &component::InstancePre<GuestState>,
        home: &Arc<Home>,
        part: PoolPart,
        deadline: Deadline,
    ) -> Result<Self, DispatchError> {
        let state =
            GuestState::new(home.clone(), deadline).map_err(|error| DispatchError::Host(format!("{error:#}")))?;
        let mut store = Store::new(pre.component().engine(), state);
        store.limiter(|state| &mut state.limits);
        store.set_hostcall_fuel(COPY_BYTES_MAX);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|store| {
            if store.data().deadline().passed() {
                return Ok(UpdateDeadline::Interrupt);
            }
            // The lane serves others and polls its sockets and timers before the guest goes on.
            Ok(UpdateDeadline::YieldCustom(1, Box::pin(lanes::leave())))
        });
        let started = until(deadline, pin!(pre.instantiate_async(&mut store))).await;
        let guest = match (outcome(&mut store, deadline, started), store.data().limits.shortage()) {
            (Err(DispatchError::Trap(_)), Some(shortage)) => {
                return Err(DispatchError::Overloaded(shortage.to_string()));
            }
            (started, _) => started?,
        };
        store.data_mut().end();
        let image_bytes = store.data().limits.memory_bytes();
        Ok(Self {
            store,
            guest,
            proxy: None,
            handle: None,
            call: None,
            uses: 0,
            spent: false,
            idle_since: Instant::now(),
            image_bytes,
            _part: part,
        })
    }

    /// Returns the number of bytes by which its memory has grown since it started.
    pub fn grown_bytes(&self) -> usize {
        self.store.data().limits.memory_bytes().saturating_sub(self.image_bytes)
    }

    /// Returns whether the directories that it was granted are still where they were.
    pub fn has_its_directories(&self) -> bool {
        self.store.data().has_its_directories()
    }

    pub async fn call_handler(
        &mut self,
        index: &ComponentExportIndex,
        request: Request,
    ) -> Result<Reply, DispatchError> {
        let handle = match &self.handle {
            Some(handle) => *handle,
            None => *self.handle.insert(typed(&mut self.store, &self.guest, index, HANDLE)?),
        };
        let Request { context, action, target, headers, body, body_room: _body_room } = request;
        let request = types::Request {
            id: context.id.to_string(),
            interface_name: context.interface.to_string(),
            protocol: context.protocol.to_string(),
            action,
            target,
            headers,
            body: body.into(),
        };
        let deadline = context.deadline;
        let (reply,) =
            self.enter(Some(context), deadline, async |store| handle.call_async(store, (request,)).await).await?;
        let types::Response { status, headers, body } = reply.map_err(DispatchError::from)?;
        Ok(Reply { status, headers, body: body.into() })
    }

    pub async fn call_service(
        &mut self,
        index: &ComponentExportIndex,
        context: Arc<RequestContext>,
        function: String,
        arguments: Payload,
    ) -> Result<Payload, DispatchError> {
        let call = match &self.call {
            Some(call) => *call,
            None => *self.call.insert(typed(&mut self.store, &self.guest, index, CALL)?),
        };
        let deadline = context.deadline;
        let arguments = (function, types::Payload::try_from(arguments)?);
        let (result,) =
            self.enter(Some(context), deadline, async |store| call.call_async(store, arguments).await).await?;
        result.map(Payload::from).map_err(DispatchError::from)
    }

    /// Calls a plain typed export with JSON arguments or with values of its own type. The result has the same form.
    pub async fn call_plain(
        &mut self,
        name: &str,
        function: &PlainFunction,
        context: Arc<RequestContext>,
        arguments: Payload,
    ) -> Result<Payload, DispatchError> {
        let signature = function
            .signature
            .as_ref()
            .map_err(|error| DispatchError::BadRequest(format!("function {name} cannot be called by name: {error}")))?;
        let json = match arguments {
            Payload::Json(json) => json,
            Payload::Values(values) => return self.call_bound(name, function, signature, context, values).await,
            Payload::Bytes(_) => {
                return Err(DispatchError::BadRequest(format!("function {name} takes JSON arguments, bytes came")));
            }
        };
        if function.is_command {
            return self.run_command(name, function, context, &json).await;
        }
        let arguments = signature.arguments(&json).map_err(|error| DispatchError::BadRequest(error.to_string()))?;
        let func = self.func(name, function)?;
        let results = self.call_dynamic(func, signature, context, arguments).await?;
        match signature.outcome(&results) {
            Ok(value::Outcome::Value(json)) => Ok(Payload::Json(json)),
            Ok(value::Outcome::GuestError(json)) => Err(DispatchError::Failed(json)),
            Err(error) => Err(DispatchError::Failed(format!("the result of function {name}: {error}"))),
        }
    }

    /// Runs a command with the words of the call. If it returns or exits with status 0, the result is `null`.
    async fn run_command(
        &mut self,
        name: &str,
        function: &PlainFunction,
        context: Arc<RequestContext>,
        json: &str,
    ) -> Result<Payload, DispatchError> {
        let words = command::words(&self.store.data().home.module, json)
            .map_err(|text| DispatchError::BadRequest(format!("{name}: {text}")))?;
        let func = self.func(name, function)?;
        self.spent = true;
        let deadline = context.deadline;
        let run = async |store: &mut Store<GuestState>| {
            store.data_mut().words = words;
            command::run(func, store).await
        };
        match self.enter(Some(context), deadline, run).await? {
            0 => Ok(Payload::Json("null".into())),
            status => Err(DispatchError::Failed(format!("the command ended with status {status}"))),
        }
    }

    /// Calls a function through a binding. An `err` that the function returns is its result, not a failure of the call.
    async fn call_bound(
        &mut self,
        name: &str,
        function: &PlainFunction,
        signature: &Arc<Signature>,
        context: Arc<RequestContext>,
        arguments: Values,
    ) -> Result<Payload, DispatchError> {
        let arguments = value::items(arguments, signature, Side::Arguments, function.carrier.is_some())
            .map_err(|misfit| DispatchError::BadRequest(format!("function {name}: {}", error_chain(&misfit))))?;
        let func = self.func(name, function)?;
        let deadline = context.deadline;
        let results = match function.carrier {
            Some(carrier) => {
                self.enter(Some(context), deadline, async |store| carrier.call(func, store, arguments).await).await?
            }
            None => {
                let arguments = arguments.into_iter().map(Item::into_val).collect();
                let results = self.call_dynamic(func, signature, context, arguments).await?;
                results.into_iter().map(Item::Val).collect()
            }
        };
        let results = value::carry(signature, Side::Result, results);
        results
            .map(Payload::Values)
            .map_err(|error| DispatchError::Failed(format!("the result of function {name} has {error}")))
    }

    async fn call_dynamic(
        &mut self,
        func: component::Func,
        signature: &Signature,
        context: Arc<RequestContext>,
        arguments: Vec<Val>,
    ) -> Result<Vec<Val>, DispatchError> {
        let mut results = vec![Val::Bool(false); signature.results()];
        let deadline = context.deadline;
        let calling = async |store: &mut Store<GuestState>| func.call_async(store, &arguments, &mut results).await;
        self.enter(Some(context), deadline, calling).await?;
        Ok(results)
    }

    fn func(&mut self, name: &str, function: &PlainFunction) -> Result<component::Func, DispatchError> {
        let func = self.guest.get_func(&mut self.store, function.index);
        func.ok_or_else(|| DispatchError::Host(format!("export {name} has gone from its component")))
    }

    /// Returns the names of the functions that the `service` export lists.
    pub async fn functions(
        &mut self,
        index: &ComponentExportIndex,
        deadline: Deadline,
    ) -> Result<Vec<String>, DispatchError> {
        let functions: Functions = typed(&mut self.store, &self.guest, index, FUNCTIONS)?;
        let (names,) = self.enter(None, deadline, async |store| functions.call_async(store, ()).await).await?;
        Ok(names)
    }

    /// Calls `save` and returns the bytes that a `single` instance hands over to its successor.
    pub async fn save(&mut self, index: &ComponentExportIndex, deadline: Deadline) -> Result<Vec<u8>, DispatchError> {
        let save: Save = typed(&mut self.store, &self.guest, index, SAVE)?;
        // The bytes may be as long as the memory here, because a trap would end the instance. The loader refuses too many.
        let memory = self.store.data().home.settings.memory_bytes;
        self.store.set_hostcall_fuel(memory.max(COPY_BYTES_MAX));
        let saved = self.enter(None, deadline, async |store| save.call_async(store, ()).await).await;
        self.store.set_hostcall_fuel(COPY_BYTES_MAX);
        saved.map(|(saved,)| saved)
    }

    pub async fn restore(
        &mut self,
        index: &ComponentExportIndex,
        saved: Vec<u8>,
        deadline: Deadline,
    ) -> Result<(), DispatchError> {
        let restore: Restore = typed(&mut self.store, &self.guest, index, RESTORE)?;
        let (restored,) = self.enter(None, deadline, async |store| restore.call_async(store, (saved,)).await).await?;
        restored.map_err(|text| DispatchError::Failed(format!("restore answered {text:?}")))
    }

    /// Checks that the exports have the types that they will be called with.
    pub fn check_types(&mut self, exports: &Exports) -> Result<(), DispatchError> {
        let (store, guest) = (&mut self.store, &self.guest);
        if let Some(index) = &exports.handler {
            let _: Handle = typed(store, guest, index, HANDLE)?;
        }
        if let Some(service) = &exports.service {
            let _: Call = typed(store, guest, &service.call, CALL)?;
            let _: Functions = typed(store, guest, &service.functions, FUNCTIONS)?;
        }
        if let Some(handover) = &exports.handover {
            let _: Save = typed(store, guest, &handover.save, SAVE)?;
            let _: Restore = typed(store, guest, &handover.restore, RESTORE)?;
        }
        Ok(())
    }

    /// Runs `call` in the guest. All calls into the guest go through here. After an error the instance must not be used again.
    pub async fn enter<T>(
        &mut self,
        context: Option<Arc<RequestContext>>,
        deadline: Deadline,
        call: impl AsyncFnOnce(&mut Store<GuestState>) -> wasmtime::Result<T>,
    ) -> Result<T, DispatchError> {
        self.uses += 1;
        let stream = context.as_ref().and_then(|context| context.stream().cloned());
        self.store.data_mut().begin(context, deadline);
        self.store.set_epoch_deadline(1);
        let result = match stream {
            None => until(deadline, pin!(call(&mut self.store))).await,
            Some(stream) => in_time(&stream, pin!(call(&mut self.store))).await,
        };
        let outcome = outcome(&mut self.store, deadline, result);
        self.store.data_mut().end();
        outcome
    }
}

/// Runs a guest until shortly after its deadline at most.
fn until<T>(deadline: Deadline, mut guest: Pin<&mut impl Future<Output = T>>) -> Timeout<impl Future<Output = T>> {
    let guest = poll_fn(move |context| lanes::poll_guest(guest.as_mut(), context));
    timeout_at(deadline.instant() + DEADLINE_GRACE, guest)
}

/// Runs a guest like `until`, with a deadline that moves on while a stream makes progress.
async fn in_time<T>(
    stream: &StreamDeadline,
    mut guest: Pin<&mut impl Future<Output = T>>,
) -> Result<T, tokio::time::error::Elapsed> {
    loop {
        let deadline = stream.now();
        match until(deadline, guest.as_mut()).await {
            Err(_) if deadline < stream.now() => {}
            result => return result,
        }
    }
}

/// Finds a function and compares its type, which is cheap enough for every new instance.
fn typed<P, R>(
    store: &mut Store<GuestState>,
    guest: &component::Instance,
    index: &ComponentExportIndex,
    name: &'static str,
) -> Result<TypedFunc<P, R>, DispatchError>
where
    P: component::ComponentNamedList + component::Lower,
    R: component::ComponentNamedList + component::Lift,
{
    let another = |error| {
        let hint = exports::BUILD_AGAIN;
        DispatchError::Host(format!("export {name} has another type than the WIT says: {error:#}; {hint}"))
    };
    guest.get_typed_func(store, index).map_err(another)
}

/// Turns the result of a call into its error: an exceeded deadline, a lack of room, or a trap, with the limit that caused it.
fn outcome<T>(
    store: &mut Store<GuestState>,
    deadline: Deadline,
    result: Result<wasmtime::Result<T>, tokio::time::error::Elapsed>,
) -> Result<T, DispatchError> {
    let late = deadline.passed() && store.data().deadline().passed();
    let limits: &mut Limits = &mut store.data_mut().limits;
    match result {
        Err(_) => Err(DispatchError::DeadlineExceeded("the module was waiting for the host".into())),
        Ok(Ok(value)) => {
            // The guest went on after the refusal, so a later trap has another cause.
            limits.take_refusal();
            Ok(value)
        }
        Ok(Err(error)) if error.downcast_ref() == Some(&Trap::Interrupt) && late => {
            Err(DispatchError::DeadlineExceeded("the module was running".into()))
        }
        Ok(Err(error)) if error.is::<wasmtime::PoolConcurrencyLimitError>() => {
            Err(DispatchError::Overloaded(format!("no room for another instance: {error:#}")))
        }
        Ok(Err(error)) => {
            let refusal = limits.take_refusal().map(|refusal| format!("{refusal}; ")).unwrap_or_default();
            let handles = store.data().home.settings.handles;
            let full = matches!(error.root_cause().downcast_ref(), Some(ResourceTableError::Full));
            let full = full.then(|| format!("limit of {handles} handles reached (handles in cage.toml); "));
            Err(DispatchError::Trap(format!("{refusal}{}{}", full.unwrap_or_default(), trap_text(&error))))
        }
    }
}

/// Returns the text of a trap in one line: the cause, then the innermost frames of the guest that have a name.
fn trap_text(error: &wasmtime::Error) -> String {
    const FRAMES_SHOWN: usize = 4;
    let mut text = match error.downcast_ref() {
        Some(I32Exit(status)) => format!("the module ended itself by exit, with status {status}"),
        None => error.root_cause().to_string(),
    };
    if error.downcast_ref() == Some(&Trap::MemoryOutOfBounds) {
        // Toolchains put the guest's own stack at the beginning of its memory, where an overflow of it causes this trap.
        text.push_str(" (maybe the guest's own stack is exhausted)");
    }
    if let Some(backtrace) = error.downcast_ref::<wasmtime::WasmBacktrace>() {
        let named = backtrace.frames().iter().filter_map(|frame| {
            let symbol = frame.symbols().first();
            Some((symbol.and_then(|symbol| symbol.name()).or(frame.func_name())?, symbol))
        });
        for (name, symbol) in named.take(FRAMES_SHOWN) {
            text.push_str(" < ");
            text.push_str(name);
            if let Some((file, line)) = symbol.and_then(|symbol| Some((symbol.file()?, symbol.line()?))) {
                text.push_str(&format!(" ({file}:{line})"));
            }
        }
    }
    text
}

impl From<types::Error> for DispatchError {
    fn from(error: types::Error) -> Self {
        match error {
            types::Error::BadArguments(text) => Self::BadRequest(text),
            types::Error::Refused(text) => Self::Refused(text),
            types::Error::Failed(text) => Self::Failed(text),
        }
    }
}
