//! `wasi:filesystem`: what may be opened. To open a pipe waits for its other end, on a thread of the host that nothing ends:
//! only ordinary files and directories are opened, and of one module only so many at a time.

use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, Linker, Resource};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView as _};
use wasmtime_wasi::p2::bindings::filesystem::types as p2;
use wasmtime_wasi::p2::bindings::filesystem::types::HostDescriptor as _;
use wasmtime_wasi::p3::bindings::filesystem::types as p3;
use wasmtime_wasi::p3::bindings::filesystem::types::HostDescriptorWithStore as _;

use super::GuestState;
use crate::module::engine::EngineKind;

/// Files of one version of a module that are being opened at one time. Further ones wait.
pub(super) const OPENING_MAX: usize = 32;

/// As wasmtime's linker names them; it answers imports of compatible versions with these.
const TYPES_P2: &str = "wasi:filesystem/types@0.2.12";
const TYPES_P3: &str = "wasi:filesystem/types@0.3.0";
const OPEN_AT: &str = "[method]descriptor.open-at";

type OpenP2 = (Resource<Descriptor>, p2::PathFlags, String, p2::OpenFlags, p2::DescriptorFlags);
type OpenP3 = (Resource<Descriptor>, p3::PathFlags, String, p3::OpenFlags, p3::DescriptorFlags);

/// Replaces what wasmtime offers.
pub(super) fn add_to_linker(linker: &mut Linker<GuestState>, kind: EngineKind) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker.instance(TYPES_P2)?.func_wrap_async(
        OPEN_AT,
        |mut store: StoreContextMut<'_, GuestState>, arguments: OpenP2| {
            Box::new(async move { Ok((open_p2(store.data_mut(), arguments).await?,)) })
        },
    )?;
    if kind == EngineKind::Concurrent {
        linker.instance(TYPES_P3)?.func_wrap_concurrent(
            OPEN_AT,
            |accessor: &Accessor<GuestState>, arguments: OpenP3| {
                Box::pin(async move { Ok((open_p3(accessor, arguments).await?,)) })
            },
        )?;
    }
    linker.allow_shadowing(false);
    Ok(())
}

async fn open_p2(
    state: &mut GuestState,
    (directory, path_flags, path, open_flags, flags): OpenP2,
) -> wasmtime::Result<Result<Resource<Descriptor>, p2::ErrorCode>> {
    let home = state.home.clone();
    let _opening = home.opening.acquire().await?;
    let mut files = state.filesystem();
    // What is not there is told by the opening itself.
    let found = files.stat_at(Resource::new_borrow(directory.rep()), path_flags, path.clone()).await;
    let waits = |of: p2::DescriptorType| {
        !matches!(
            of,
            p2::DescriptorType::RegularFile | p2::DescriptorType::Directory | p2::DescriptorType::SymbolicLink
        )
    };
    if found.is_ok_and(|found| waits(found.type_)) {
        return Ok(Err(p2::ErrorCode::NotPermitted));
    }
    let opened = files.open_at(directory, path_flags, path, open_flags, flags).await;
    opened.map(Ok).or_else(|error| error.downcast().map(Err))
}

async fn open_p3(
    accessor: &Accessor<GuestState>,
    (directory, path_flags, path, open_flags, flags): OpenP3,
) -> wasmtime::Result<Result<Resource<Descriptor>, p3::ErrorCode>> {
    let home = accessor.with(|mut store| store.get().home.clone());
    let _opening = home.opening.acquire().await?;
    let files = accessor.with_getter::<WasiFilesystem>(GuestState::filesystem);
    let borrowed = Resource::new_borrow(directory.rep());
    let found = WasiFilesystem::stat_at(&files, borrowed, path_flags, path.clone()).await;
    let waits = |of: &p3::DescriptorType| {
        !matches!(
            of,
            p3::DescriptorType::RegularFile | p3::DescriptorType::Directory | p3::DescriptorType::SymbolicLink
        )
    };
    if found.is_ok_and(|found| waits(&found.type_)) {
        return Ok(Err(p3::ErrorCode::NotPermitted));
    }
    let opened = WasiFilesystem::open_at(&files, directory, path_flags, path, open_flags, flags).await;
    opened.map(Ok).or_else(|error| error.downcast().map(Err))
}
