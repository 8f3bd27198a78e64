// The C ABI of the library's settings, which hold for all calls, and of what it reports about
// itself.
#include "../include/ffncore.h"

#include "../core/cpu.h"
#include "../core/streams.h"
#include "../core/threads.h"
#include "../core/workspace.h"
#include "../ops/product/gemm.h"
#include "../ops/schedule/plan.h"
#include "call.h"
#include "check.h"

using namespace ffncore;

const char *ffncore_version(void) {
#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)
    return TEXT(FFNCORE_VERSION_MAJOR) "." TEXT(FFNCORE_VERSION_MINOR) "." TEXT(
        FFNCORE_VERSION_PATCH);
}

const char *ffncore_last_error(void) { return last_error(); }

// ---- instruction sets

int32_t ffncore_isa_count(void) {
    return guarded_or(0, [] { return isa_count(); });
}

const char *ffncore_isa_name(int32_t i) {
    return guarded_or<const char *>(nullptr, [&] {
        const KernelTable *const isa = isa_table(i);
        return isa ? isa->name : nullptr;
    });
}

const char *ffncore_isa_current(void) {
    return guarded_or<const char *>(nullptr, [] {
        const KernelTable *const isa = current_isa();
        return isa ? isa->name : nullptr;
    });
}

ffncore_status ffncore_isa_use(const char *name) {
    return guarded([&] {
        return use_isa(name) ? FFNCORE_OK : fail(FFNCORE_UNSUPPORTED, "%s", isa_problem());
    });
}

const char *ffncore_cpu_features(void) {
    return guarded_or("", [] { return cpu_features(); });
}

const char *ffncore_build_info(void) {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown compiler";
#endif
}

// ---- threads and memory

int32_t ffncore_num_threads(void) {
    return guarded_or(1, [] { return num_threads(); });
}

ffncore_status ffncore_set_num_threads(int32_t n) {
    return guarded([&] {
        require(n >= 0, "the number of threads is %" PRId32 "; expected at least 0", n);
        set_num_threads(n);
        return FFNCORE_OK;
    });
}

void ffncore_clear_workspace(void) {
    guarded([] {
        clear_workspace();
        return FFNCORE_OK;
    });
}

// ---- for tests

ffncore_status ffncore_debug_plan(int64_t token_chunk, int64_t ff_chunk, int64_t token_slice,
                                  int32_t tokens_in_rows, int32_t always) {
    plan_override = {token_chunk, ff_chunk, token_slice, tokens_in_rows};
    set_threads_always(always);
    return FFNCORE_OK;
}

ffncore_status ffncore_debug_streams(int32_t panels, int64_t ahead) {
    override_streams(panels, ahead);
    return FFNCORE_OK;
}

int64_t ffncore_debug_flops(void) { return counted_flops.exchange(0); }
