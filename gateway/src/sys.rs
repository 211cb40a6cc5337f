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
