//! The functions of `wit/` that take names, keys and lines of the log, with texts of bounded length in place of those that the
//! bindings copy whole.

use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

use super::GuestState;
use super::bindings::types::Payload;
use super::bindings::{call, config, context, lock, log, resources, state};
use super::log::LINE_BYTES_MAX;
use super::text::{Name, Text};

type Store<'a> = StoreContextMut<'a, GuestState>;

/// Replaces what the bindings offer.
pub(super) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    add_plain(linker)?;
    add_calls(linker)?;
    add_keys(linker)?;
    add_queues(linker)?;
    add_locks(linker)?;
    add_resources(linker)?;
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
    )
}

fn add_keys(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut functions = linker.instance("wasmcage:cage/state@0.1.0")?;
    functions.func_wrap_async("get", |mut store: Store<'_>, (key,): (Name,)| {
        Box::new(async move { Ok((state::Host::get(store.data_mut(), key.into_name()).await,)) })
    })?;
    functions.func_wrap_async("set", |mut store: Store<'_>, (key, value): (Name, Payload)| {
        Box::new(async move { Ok((state::Host::set(store.data_mut(), key.into_name(), value).await,)) })
    })?;
    functions.func_wrap_async("delete", |mut store: Store<'_>, (key,): (Name,)| {
        Box::new(async move { Ok((state::Host::delete(store.data_mut(), key.into_name()).await,)) })
    })?;
    functions.func_wrap_async("increment", |mut store: Store<'_>, (key, by): (Name, i64)| {
        Box::new(async move { Ok((state::Host::increment(store.data_mut(), key.into_name(), by).await,)) })
    })?;
    type Swap = (Name, Option<Payload>, Option<Payload>);
    functions.func_wrap_async("compare-and-set", |mut store: Store<'_>, (key, expected, value): Swap| {
        Box::new(async move {
            Ok((state::Host::compare_and_set(store.data_mut(), key.into_name(), expected, value).await,))
        })
    })
}

fn add_queues(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut functions = linker.instance("wasmcage:cage/state@0.1.0")?;
    functions.func_wrap_async("queue-push", |mut store: Store<'_>, (queue, entry): (Name, Payload)| {
        Box::new(async move { Ok((state::Host::queue_push(store.data_mut(), queue.into_name(), entry).await,)) })
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
    type Arguments = (Name, resources::Operation, resources::Options);
    let mut functions = linker.instance("wasmcage:cage/resources@0.1.0")?;
    functions.func_wrap_async("execute", |mut store: Store<'_>, (name, operation, options): Arguments| {
        Box::new(async move {
            Ok((resources::Host::execute(store.data_mut(), name.into_name(), operation, options).await?,))
        })
    })?;
    functions.func_wrap_async("open", |mut store: Store<'_>, (name, operation, options): Arguments| {
        Box::new(
            async move { Ok((resources::Host::open(store.data_mut(), name.into_name(), operation, options).await?,)) },
        )
    })
}
