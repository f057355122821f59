//! Defines the functions of `wit/` that take names, keys, lines of the log, stored values and operations. They take texts and
//! lists of bounded length, where the bindings would copy them whole.

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};

use super::bindings::call::{self, CallError};
use super::bindings::resources::{self, ResourceError as WitError};
use super::bindings::state::{self, StateError};
use super::bindings::types::Payload;
use super::bindings::{config, context, lock, log, transaction};
use super::log::LINE_BYTES_MAX;
use super::short_records::{Begin, Names, Operation, Options, Range, RetriedCall, Steps, Value};
use super::text::{Name, Text, TooLong};
use super::transaction::TransactionHandle;
use super::{GuestState, short_records as short};
use wasmcage_resource::transaction::Participant;
use wasmcage_resource::{Phase, ResourceError};

type Store<'a> = StoreContextMut<'a, GuestState>;

/// Replaces the functions that the bindings have defined.
pub(super) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    add_plain(linker)?;
    add_calls(linker)?;
    add_keys(linker)?;
    add_queues(linker)?;
    add_locks(linker)?;
    add_resources(linker)?;
    add_transactions(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

fn add_plain(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut functions = linker.instance("wasmcage:cage/log@0.1.0")?;
    functions.func_wrap("log", |store: Store<'_>, (level, line): (log::Level, Text<LINE_BYTES_MAX>)| {
        store.data().log_text(super::log::from_wit(level), line);
        Ok(())
    })?;
    let mut functions = linker.instance("wasmcage:cage/context@0.1.0")?;
    functions.func_wrap("fact", |mut store: Store<'_>, (name,): (Name,)| {
        Ok((context::Host::fact(store.data_mut(), name.into_name()),))
    })?;
    functions.func_wrap("describe", |mut store: Store<'_>, (text,): (Name,)| {
        context::Host::describe(store.data_mut(), text.into_parts().0);
        Ok(())
    })?;
    linker.instance("wasmcage:cage/config@0.1.0")?.func_wrap("get", |mut store: Store<'_>, (key,): (Name,)| {
        Ok((config::Host::get(store.data_mut(), key.into_name()),))
    })
}

fn add_calls(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    type Arguments = (Option<Name>, Name, Name, Payload, call::Options);
    let mut functions = linker.instance("wasmcage:cage/call@0.1.0")?;
    functions.func_wrap_async(
        "call",
        |mut store: Store<'_>, (cage, module, function, payload, options): Arguments| {
            let (cage, module, function) = (cage.map(Name::into_name), module.into_name(), function.into_name());
            Box::new(async move {
                Ok((call::Host::call(store.data_mut(), cage, module, function, payload, options).await,))
            })
        },
    )?;
    functions.func_wrap_async(
        "call-all",
        |mut store: Store<'_>, (cage, module, function, payload, options): Arguments| {
            let (cage, module, function) = (cage.map(Name::into_name), module.into_name(), function.into_name());
            Box::new(async move {
                Ok((call::Host::call_all(store.data_mut(), cage, module, function, payload, options).await,))
            })
        },
    )?;
    functions.func_wrap_async("retried", |mut store: Store<'_>, (call,): (RetriedCall,)| {
        Box::new(async move { Ok((retried(store.data_mut(), call).await,)) })
    })
}

async fn retried(guest: &mut GuestState, call: RetriedCall) -> Result<String, CallError> {
    call::Host::retried(guest, call.whole()?).await
}

fn add_keys(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut functions = linker.instance("wasmcage:cage/state@0.1.0")?;
    functions.func_wrap_async("get", |mut store: Store<'_>, (key,): (Name,)| {
        Box::new(async move { Ok((state::Host::get(store.data_mut(), key.into_name()).await,)) })
    })?;
    functions.func_wrap_async("set", |mut store: Store<'_>, (key, value): (Name, Value)| {
        Box::new(async move { Ok((set(store.data_mut(), key, value).await,)) })
    })?;
    functions.func_wrap_async("delete", |mut store: Store<'_>, (key,): (Name,)| {
        Box::new(async move { Ok((state::Host::delete(store.data_mut(), key.into_name()).await,)) })
    })?;
    functions.func_wrap_async("increment", |mut store: Store<'_>, (key, by): (Name, i64)| {
        Box::new(async move { Ok((state::Host::increment(store.data_mut(), key.into_name(), by).await,)) })
    })?;
    type Swap = (Name, Option<Value>, Option<Value>);
    functions.func_wrap_async("compare-and-set", |mut store: Store<'_>, (key, expected, value): Swap| {
        Box::new(async move { Ok((compare_and_set(store.data_mut(), key, expected, value).await,)) })
    })?;
    type Scan = (Range, u32, Option<Name>);
    functions.func_wrap_async("scan", |mut store: Store<'_>, (range, limit, cursor): Scan| {
        Box::new(async move { Ok((scan(store.data_mut(), range, limit, cursor).await,)) })
    })?;
    functions.func_wrap_async("transact", |mut store: Store<'_>, (steps,): (Steps,)| {
        Box::new(async move { Ok((transact(store.data_mut(), steps).await,)) })
    })
}

async fn set(guest: &mut GuestState, key: Name, value: Value) -> Result<(), StateError> {
    state::Host::set(guest, key.into_name(), value.whole()?).await
}

async fn compare_and_set(
    guest: &mut GuestState,
    key: Name,
    expected: Option<Value>,
    value: Option<Value>,
) -> Result<bool, StateError> {
    let [expected, value] = [expected, value].map(|value| value.map(Value::whole).transpose());
    state::Host::compare_and_set(guest, key.into_name(), expected?, value?).await
}

async fn scan(
    guest: &mut GuestState,
    range: Range,
    limit: u32,
    cursor: Option<Name>,
) -> Result<state::Page, StateError> {
    let cursor = cursor.map(|cursor| cursor.whole("the cursor")).transpose()?;
    state::Host::scan(guest, range.whole()?, limit, cursor).await
}

async fn transact(guest: &mut GuestState, steps: Steps) -> Result<Vec<state::Outcome>, StateError> {
    state::Host::transact(guest, short::whole_steps(steps)?).await
}

fn add_queues(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut functions = linker.instance("wasmcage:cage/state@0.1.0")?;
    functions.func_wrap_async("queue-push", |mut store: Store<'_>, (queue, entry): (Name, Value)| {
        Box::new(async move { Ok((queue_push(store.data_mut(), queue, entry).await,)) })
    })?;
    functions.func_wrap_async("queue-pop", |mut store: Store<'_>, (queue,): (Name,)| {
        Box::new(async move { Ok((state::Host::queue_pop(store.data_mut(), queue.into_name()).await,)) })
    })?;
    functions.func_wrap_async("queue-peek", |mut store: Store<'_>, (queue, limit): (Name, u32)| {
        Box::new(async move { Ok((state::Host::queue_peek(store.data_mut(), queue.into_name(), limit).await,)) })
    })?;
    functions.func_wrap_async("queue-length", |mut store: Store<'_>, (queue,): (Name,)| {
        Box::new(async move { Ok((state::Host::queue_length(store.data_mut(), queue.into_name()).await,)) })
    })
}

async fn queue_push(guest: &mut GuestState, queue: Name, entry: Value) -> Result<u64, StateError> {
    state::Host::queue_push(guest, queue.into_name(), entry.whole()?).await
}

fn add_locks(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut functions = linker.instance("wasmcage:cage/lock@0.1.0")?;
    type Acquire = (Name, lock::Mode, Option<u32>);
    functions.func_wrap_async("acquire", |mut store: Store<'_>, (name, mode, timeout): Acquire| {
        Box::new(async move { Ok((lock::Host::acquire(store.data_mut(), name.into_name(), mode, timeout).await?,)) })
    })?;
    functions.func_wrap_async("queue-push", |mut store: Store<'_>, (queue, entry): (Name, Payload)| {
        Box::new(async move { Ok((lock::Host::queue_push(store.data_mut(), queue.into_name(), entry).await?,)) })
    })?;
    functions.func_wrap_async("queue-pop", |mut store: Store<'_>, (queue, timeout): (Name, u32)| {
        Box::new(async move { Ok((lock::Host::queue_pop(store.data_mut(), queue.into_name(), timeout).await?,)) })
    })?;
    functions.func_wrap_async("queue-length", |mut store: Store<'_>, (queue,): (Name,)| {
        Box::new(async move { Ok((lock::Host::queue_length(store.data_mut(), queue.into_name()).await?,)) })
    })
}

fn add_resources(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    type Arguments = (Name, Operation, Options);
    let mut functions = linker.instance("wasmcage:cage/resources@0.1.0")?;
    functions.func_wrap_async("execute", |mut store: Store<'_>, (name, operation, options): Arguments| {
        let name = name.into_name();
        Box::new(async move {
            let (operation, options) = match asked(&name, operation, options) {
                Ok(asked) => asked,
                Err(error) => return Ok((Err(error),)),
            };
            Ok((resources::Host::execute(store.data_mut(), name, operation, options).await?,))
        })
    })?;
    functions.func_wrap_async("open", |mut store: Store<'_>, (name, operation, options): Arguments| {
        let name = name.into_name();
        Box::new(async move {
            let (operation, options) = match asked(&name, operation, options) {
                Ok(asked) => asked,
                Err(error) => return Ok((Err(error),)),
            };
            Ok((resources::Host::open(store.data_mut(), name, operation, options).await?,))
        })
    })
}

/// Returns the operation on a resource and its options.
///
/// # Errors
/// `BAD_OPERATION` if a part of them is too long.
fn asked(
    name: &str,
    operation: Operation,
    options: Options,
) -> Result<(resources::Operation, resources::Options), WitError> {
    let whole = || Ok::<_, TooLong>((operation.whole()?, options.whole()?));
    whole().map_err(|TooLong(text)| {
        let error = ResourceError::harmless(Phase::Check, ResourceError::BAD_OPERATION, text);
        WitError { participant: name.to_owned(), ..error.into() }
    })
}

type Participating = (resources::Operation, Vec<(String, String)>, Vec<String>);

/// Returns the operation that a resource does within a transaction.
///
/// # Errors
/// A part of it is too long.
fn participating(operation: Operation, begin: Begin, writes: Names) -> Result<Participating, TooLong> {
    Ok((operation.whole()?, short::whole_begin(begin)?, short::whole_names(writes)?))
}

fn add_transactions(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    type Transaction = Resource<TransactionHandle>;
    let mut functions = linker.instance("wasmcage:cage/transaction@0.1.0")?;
    type AddOperation = (Transaction, Name, Operation, Begin, Names);
    functions.func_wrap_async(
        "[method]transaction.add-operation",
        |mut store: Store<'_>, (transaction, name, operation, begin, writes): AddOperation| {
            let name = name.into_name();
            Box::new(async move {
                let guest = store.data_mut();
                let number = match participating(operation, begin, writes) {
                    Ok((operation, begin, writes)) => {
                        transaction::HostTransaction::add_operation(guest, transaction, name, operation, begin, writes)
                            .await?
                    }
                    Err(error) => guest.add_too_long(&transaction, &name, ResourceError::BAD_OPERATION, error)?,
                };
                Ok((number,))
            })
        },
    )?;
    type AddState = (Transaction, Steps);
    functions.func_wrap_async(
        "[method]transaction.add-state",
        |mut store: Store<'_>, (transaction, steps): AddState| {
            Box::new(async move {
                let guest = store.data_mut();
                let number = match short::whole_steps(steps) {
                    Ok(steps) => transaction::HostTransaction::add_state(guest, transaction, steps).await?,
                    Err(error) => guest.add_too_long(&transaction, Participant::STATE, "invalid", error)?,
                };
                Ok((number,))
            })
        },
    )?;
    type AddRetriedCall = (Transaction, RetriedCall);
    functions.func_wrap_async(
        "[method]transaction.add-retried-call",
        |mut store: Store<'_>, (transaction, call): AddRetriedCall| {
            Box::new(async move {
                let guest = store.data_mut();
                let number = match call.whole() {
                    Ok(call) => transaction::HostTransaction::add_retried_call(guest, transaction, call).await?,
                    Err(error) => guest.add_too_long(&transaction, Participant::RETRIED_CALL, "bad-request", error)?,
                };
                Ok((number,))
            })
        },
    )?;
    type AddCall = (Transaction, Option<Name>, Name, Name, Payload);
    functions.func_wrap_async(
        "[method]transaction.add-call",
        |mut store: Store<'_>, (transaction, cage, module, function, arguments): AddCall| {
            let (cage, module, function) = (cage.map(Name::into_name), module.into_name(), function.into_name());
            Box::new(async move {
                let guest = store.data_mut();
                let number =
                    transaction::HostTransaction::add_call(guest, transaction, cage, module, function, arguments);
                Ok((number.await?,))
            })
        },
    )
}
