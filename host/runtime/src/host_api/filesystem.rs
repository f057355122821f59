//! Limits what guests may open by `wasi:filesystem`. Opening a pipe waits for its other end, on a thread of the host that
//! cannot be stopped. So only ordinary files and directories are opened, and a limited number for each module at the same time.
//! Paths are copied out of the guest only if they are not too long for the kernel.

use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, Linker, LinkerInstance, Resource};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView as _};
use wasmtime_wasi::p2::bindings::filesystem::types as p2;
use wasmtime_wasi::p2::bindings::filesystem::types::HostDescriptor as _;
use wasmtime_wasi::p3::bindings::filesystem::types as p3;
use wasmtime_wasi::p3::bindings::filesystem::types::HostDescriptorWithStore as _;

use super::GuestState;
use super::text::Text;
use crate::module::engine::EngineKind;

/// The number of files that one version of a module may be opening at the same time. Further ones wait.
pub(super) const OPENING_MAX: usize = 32;

/// The names in wasmtime's linker, which also serves imports of compatible versions with them.
const TYPES_P2: &str = "wasi:filesystem/types@0.2.12";
const TYPES_P3: &str = "wasi:filesystem/types@0.3.0";
const OPEN_AT: &str = "[method]descriptor.open-at";

/// The greatest length of a path, which is the kernel's limit.
const PATH_BYTES_MAX: usize = 4_096;

type Path = Text<PATH_BYTES_MAX>;
type File = Resource<Descriptor>;
type OpenP2 = (File, p2::PathFlags, Path, p2::OpenFlags, p2::DescriptorFlags);
type OpenP3 = (File, p3::PathFlags, Path, p3::OpenFlags, p3::DescriptorFlags);

/// Replaces wasmtime's functions.
pub(super) fn add_to_linker(linker: &mut Linker<GuestState>, kind: EngineKind) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    add_p2(&mut linker.instance(TYPES_P2)?)?;
    if kind == EngineKind::Concurrent {
        add_p3(&mut linker.instance(TYPES_P3)?)?;
    }
    linker.allow_shadowing(false);
    Ok(())
}

/// Defines a function of WASI 0.2 that takes paths, which it passes on to wasmtime's.
macro_rules! bounded_p2 {
    ($functions:ident, $name:literal, $method:ident($($argument:ident: $ty:ty),*), $($path:ident)*) => {
        $functions.func_wrap_async(
            $name,
            |mut store: StoreContextMut<'_, GuestState>, ($($argument,)*): ($($ty,)*)| {
                Box::new(async move {
                    let ($(Ok($path),)*) = ($($path.whole("a path"),)*) else {
                        return Ok((Err(p2::ErrorCode::NameTooLong),));
                    };
                    let done = store.data_mut().filesystem().$method($($argument),*).await;
                    Ok((done.map(Ok).or_else(|error| error.downcast().map(Err))?,))
                })
            },
        )?;
    };
}

/// Adds the functions of both versions that take paths, except `open-at`.
macro_rules! add_paths {
    ($functions:ident, $bounded:ident, $types:ident) => {
        $bounded!($functions, "[method]descriptor.create-directory-at", create_directory_at(file: File, path: Path), path);
        $bounded!($functions, "[method]descriptor.stat-at", stat_at(file: File, flags: $types::PathFlags, path: Path), path);
        $bounded!(
            $functions,
            "[method]descriptor.set-times-at",
            set_times_at(file: File, flags: $types::PathFlags, path: Path, accessed: $types::NewTimestamp, modified: $types::NewTimestamp),
            path
        );
        $bounded!(
            $functions,
            "[method]descriptor.link-at",
            link_at(file: File, flags: $types::PathFlags, path: Path, new_file: File, new_path: Path),
            path new_path
        );
        $bounded!($functions, "[method]descriptor.readlink-at", readlink_at(file: File, path: Path), path);
        $bounded!($functions, "[method]descriptor.remove-directory-at", remove_directory_at(file: File, path: Path), path);
        $bounded!(
            $functions,
            "[method]descriptor.rename-at",
            rename_at(file: File, path: Path, new_file: File, new_path: Path),
            path new_path
        );
        $bounded!(
            $functions,
            "[method]descriptor.symlink-at",
            symlink_at(file: File, path: Path, new_path: Path),
            path new_path
        );
        $bounded!($functions, "[method]descriptor.unlink-file-at", unlink_file_at(file: File, path: Path), path);
        $bounded!(
            $functions,
            "[method]descriptor.metadata-hash-at",
            metadata_hash_at(file: File, flags: $types::PathFlags, path: Path),
            path
        );
    };
}

fn add_p2(functions: &mut LinkerInstance<'_, GuestState>) -> wasmtime::Result<()> {
    functions.func_wrap_async(OPEN_AT, |mut store: StoreContextMut<'_, GuestState>, arguments: OpenP2| {
        Box::new(async move { Ok((open_p2(store.data_mut(), arguments).await?,)) })
    })?;
    add_paths!(functions, bounded_p2, p2);
    Ok(())
}

/// Defines a function of WASI 0.3 that takes paths, which it passes on to wasmtime's.
macro_rules! bounded_p3 {
    ($functions:ident, $name:literal, $method:ident($($argument:ident: $ty:ty),*), $($path:ident)*) => {
        $functions.func_wrap_concurrent(
            $name,
            |accessor: &Accessor<GuestState>, ($($argument,)*): ($($ty,)*)| {
                Box::pin(async move {
                    let ($(Ok($path),)*) = ($($path.whole("a path"),)*) else {
                        return Ok((Err(p3::ErrorCode::NameTooLong),));
                    };
                    let files = accessor.with_getter::<WasiFilesystem>(GuestState::filesystem);
                    let done = WasiFilesystem::$method(&files, $($argument),*).await;
                    Ok((done.map(Ok).or_else(|error| error.downcast().map(Err))?,))
                })
            },
        )?;
    };
}

fn add_p3(functions: &mut LinkerInstance<'_, GuestState>) -> wasmtime::Result<()> {
    functions.func_wrap_concurrent(OPEN_AT, |accessor: &Accessor<GuestState>, arguments: OpenP3| {
        Box::pin(async move { Ok((open_p3(accessor, arguments).await?,)) })
    })?;
    add_paths!(functions, bounded_p3, p3);
    Ok(())
}

async fn open_p2(
    state: &mut GuestState,
    (directory, path_flags, path, open_flags, flags): OpenP2,
) -> wasmtime::Result<Result<Resource<Descriptor>, p2::ErrorCode>> {
    let Ok(path) = path.whole("a path") else { return Ok(Err(p2::ErrorCode::NameTooLong)) };
    let home = state.home.clone();
    let _opening = home.opening.acquire().await?;
    let mut files = state.filesystem();
    // If the file does not exist, `open_at` below returns the error.
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
    let Ok(path) = path.whole("a path") else { return Ok(Err(p3::ErrorCode::NameTooLong)) };
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
