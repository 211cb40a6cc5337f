//! The only unsafe code of the gateway: calls for which no safe wrapper exists.

/// Gives free memory of the allocator's arenas back to the kernel (malloc_trim(3), glibc).
#[expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]
pub fn return_free_memory() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> i32;
    }
    // SAFETY: malloc_trim takes a number, touches only the allocator's own free memory and may be called from any thread.
    let _released: i32 = unsafe { malloc_trim(0) };
}

/// A memtable grows by blocks of 1 MiB; batches are smaller.
const LARGE_BLOCK: i32 = 1_000_000;

/// Large blocks are mapped one by one, and so go back to the kernel as soon as they are free (mallopt(3), glibc). By
/// itself the allocator would keep the memory of every memtable that has become a file. For the start of the process.
#[expect(unsafe_code, reason = "mallopt has no safe wrapper")]
pub fn map_large_blocks() {
    /// `M_MMAP_THRESHOLD` of malloc.h. Once set, the allocator does not raise it by itself.
    const MMAP_THRESHOLD: i32 = -3;
    unsafe extern "C" {
        fn mallopt(parameter: i32, value: i32) -> i32;
    }
    // SAFETY: mallopt takes two numbers and changes nothing but the allocator's settings.
    let _is_set: i32 = unsafe { mallopt(MMAP_THRESHOLD, LARGE_BLOCK) };
}
