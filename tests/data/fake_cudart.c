/* A libcudart for tests, on host memory, with the semantics that a mistake would break on a GPU:
 *
 * - what is enqueued runs when the stream is waited for, not before;
 * - copies and kernels are held to the bounds and the kind of the memory they name: an address of
 *   pageable memory in a kernel is an illegal address, which is a sticky error;
 * - while a stream captures, work goes into the graph and waiting is an error;
 * - a stream that waits for an event of another one has its work done first; who does not wait
 *   reads what was there before;
 * - every handle is counted, a second free is noticed, and any n-th call can be made to fail.
 *
 * gcc -shared -fPIC -o libcudart.so.13 fake_cudart.c
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INSUFFICIENT_DRIVER = 35, NO_DEVICE = 100,
       INVALID_HANDLE = 400, ILLEGAL_ADDRESS = 700, CAPTURE_UNSUPPORTED = 900,
       CAPTURE_INVALIDATED = 901 };
enum { DEVICE, PINNED, STREAM, EVENT, GRAPH, EXEC, KINDS };
enum { MAX_HANDLES = 256, MAX_WORK = 64 };
#define MAPPED_OFFSET ((uintptr_t)1 << 46) /* where the GPU sees mapped memory: no host address */

typedef struct {
    int what; /* 0 copy, 1 kernel, 2 event, 3 wait for an event */
    char *to, *from;
    size_t bytes, pixels;
    int kind, nchw;
    float gain, offset;
    void *event;
} Work;

typedef struct { /* every handle is one of these; for memory `address` is the handle itself */
    int kind, used, mapped, capturing, invalidated, device;
    int before; /* work ahead of a capture, which is not of it */
    char *address;
    size_t bytes;
    int count;
    Work *work;
    double time;
} Handle;

static Handle handles[MAX_HANDLES];
static Work legacy_work[MAX_WORK];
static Handle legacy = {.kind = STREAM, .used = 1, .work = legacy_work}; /* the default stream */
static int uploads, device_synchronizations;
static int live[KINDS], bad_frees, calls, fail_at, fail_code, sticky, last_error;
static int device_count = 1, driver_version = 13000, integrated = 0, no_capture = 0;
static int device_count_error = 0;
static size_t memory = (size_t)1 << 30, allocated;
static double clock_ms;

/* --- what the tests ask and set */
int fakeLive(int kind) { return live[kind]; }
int fakeBadFrees(void) { return bad_frees; }
int fakeCalls(void) { return calls; }
int fakeLastError(void) { return last_error; }
int fakeUploads(void) { return uploads; }
int fakeDeviceSynchronizations(void) { return device_synchronizations; }
void fakeFailAt(int n, int code) { calls = 0; fail_at = n; fail_code = code; }
void fakeDevice(int count, int error, int driver, int is_integrated, int capture, size_t bytes) {
    device_count = count;
    device_count_error = error;
    driver_version = driver;
    integrated = is_integrated;
    no_capture = !capture;
    memory = bytes;
}
void fakeReset(void) {
    for (int i = 0; i < MAX_HANDLES; i++) {
        if (!handles[i].used) continue;
        if (handles[i].kind <= PINNED) free(handles[i].address);
        free(handles[i].work);
    }
    memset(handles, 0, sizeof handles);
    memset(live, 0, sizeof live);
    legacy.count = legacy.capturing = uploads = device_synchronizations = 0;
    bad_frees = calls = fail_at = fail_code = sticky = last_error = 0;
    allocated = 0;
    fakeDevice(1, 0, 13000, 0, 1, (size_t)1 << 30);
}

__attribute__((destructor)) static void tell(void) {
    if (!getenv("FAKE_CUDART_REPORT")) return;
    FILE *report = fopen(getenv("FAKE_CUDART_REPORT"), "w");
    if (!report) return;
    for (int kind = 0; kind < KINDS; kind++) fprintf(report, "%d ", live[kind]);
    fprintf(report, "%d\n", bad_frees);
    fclose(report);
}

static int fail(int code) {
    if (code) last_error = code;
    if (code >= 700 && code < 720) sticky = code;
    return code;
}
static int enter(void) {
    calls++;
    if (sticky) return fail(sticky);
    return calls == fail_at ? fail(fail_code) : OK;
}
#define ENTER do { int code = enter(); if (code) return code; } while (0)

static Handle *new_handle(int kind) {
    for (int i = 0; i < MAX_HANDLES; i++) {
        if (handles[i].used) continue;
        handles[i] = (Handle){.kind = kind, .used = 1};
        if (kind == STREAM || kind == GRAPH || kind == EXEC)
            handles[i].work = malloc(MAX_WORK * sizeof(Work));
        live[kind]++;
        return &handles[i];
    }
    abort(); /* a test that needs so many leaks them */
}
static Handle *find(void *handle, int kind) {
    if (kind == STREAM && (uintptr_t)handle <= 1) return &legacy; /* NULL, cudaStreamLegacy */
    for (int i = 0; i < MAX_HANDLES; i++)
        if (handles[i].used && handles[i].kind == kind
            && (kind <= PINNED ? (void *)handles[i].address : (void *)&handles[i]) == handle)
            return &handles[i];
    return NULL;
}
static int destroy(void *handle, int kind) {
    Handle *found = find(handle, kind);
    if (found == &legacy) found = NULL;
    /* the memory goes also where an error is returned, as with CUDA's */
    if (!found) { bad_frees++; return fail(INVALID_HANDLE); }
    if (kind <= PINNED) free(found->address);
    if (kind == DEVICE) allocated -= found->bytes;
    free(found->work);
    live[kind]--;
    found->used = 0;
    return enter();
}
/* the host address behind one of the GPU's, or NULL */
static char *on_device(char *address, size_t bytes) {
    for (int i = 0; i < MAX_HANDLES; i++) {
        Handle *h = &handles[i];
        if (!h->used || h->kind > PINNED || (h->kind == PINNED && !h->mapped)) continue;
        char *start = h->kind == PINNED ? h->address + MAPPED_OFFSET : h->address;
        if (address >= start && address + bytes <= start + h->bytes)
            return h->address + (address - start);
    }
    return NULL;
}
static int pinned(char *address, size_t bytes) {
    for (int i = 0; i < MAX_HANDLES; i++)
        if (handles[i].used && handles[i].kind == PINNED && address >= handles[i].address
            && address + bytes <= handles[i].address + handles[i].bytes)
            return 1;
    return 0;
}

/* on which GPU memory lies that somebody else allocated */
void fakeMove(void *address, int device) { find(address, DEVICE)->device = device; }

static int execute(Work *w);
/* do what stands before the record of an event, on whatever stream */
static int execute_until(void *event) {
    for (int i = -1; i < MAX_HANDLES; i++) {
        Handle *s = i < 0 ? &legacy : &handles[i];
        if (!s->used || s->kind != STREAM || s->capturing) continue;
        for (int end = s->count - 1; end >= 0; end--) {
            if (s->work[end].what != 2 || s->work[end].event != event) continue;
            int code = OK;
            for (int k = 0; k <= end && !code; k++) code = execute(&s->work[k]);
            s->count -= end + 1;
            memmove(s->work, s->work + end + 1, s->count * sizeof(Work));
            return code;
        }
    }
    return OK; /* done already */
}
static int execute(Work *w) {
    if (w->what == 3) return execute_until(w->event);
    clock_ms += 0.25;
    if (w->what == 2) {
        Handle *event = find(w->event, EVENT);
        if (event) event->time = clock_ms;
        return OK;
    }
    if (w->what == 0 && w->kind == 3) {
        char *to = on_device(w->to, w->bytes), *from = on_device(w->from, w->bytes);
        if (!to || !from) return fail(ILLEGAL_ADDRESS);
        memcpy(to, from, w->bytes);
        return OK;
    }
    if (w->what == 0) {
        uploads += w->kind == 1;
        char *device = on_device(w->kind == 1 ? w->to : w->from, w->bytes);
        char *host = w->kind == 1 ? w->from : w->to;
        if (!device || !pinned(host, w->bytes)) return fail(ILLEGAL_ADDRESS);
        if (w->kind == 1) memcpy(device, host, w->bytes);
        else memcpy(host, device, w->bytes);
        return OK;
    }
    size_t in_bytes = w->pixels * 3 * (w->nchw ? sizeof(float) : 1);
    char *in = on_device(w->from, in_bytes);
    float *out = (float *)on_device(w->to, w->pixels * sizeof(float));
    if (!in || !out) return fail(ILLEGAL_ADDRESS);
    for (size_t i = 0; i < w->pixels; i++) {
        double sum = 0;
        for (int c = 0; c < 3; c++)
            sum += (c + 1) * (w->nchw ? (double)((float *)in)[c * w->pixels + i]
                                      : (double)((uint8_t *)in)[3 * i + c]);
        out[i] = (float)(w->gain * sum / 3 + w->offset);
    }
    return OK;
}
static int enqueue(void *stream, Work work) {
    Handle *s = find(stream, STREAM);
    if (!s) return fail(INVALID_HANDLE);
    if (s->count == MAX_WORK) abort(); /* the test never waits */
    s->work[s->count++] = work;
    return OK;
}

/* --- the stand-in for an engine: depth = gain * mean(1 r, 2 g, 3 b) + offset */
int fakeDepth(void *stream, void *out, void *in, size_t pixels, int nchw, float gain,
              float offset) {
    Handle *s = find(stream, STREAM);
    if (s && s->capturing && no_capture) { s->invalidated = 1; return fail(CAPTURE_UNSUPPORTED); }
    if (sticky) return fail(sticky);
    return enqueue(stream, (Work){.what = 1, .to = out, .from = in, .pixels = pixels,
                                  .nchw = nchw, .gain = gain, .offset = offset});
}

/* --- CUDA's functions */
int cudaGetDeviceCount(int *count) {
    ENTER;
    if (driver_version == 0 || driver_version < 12000) return fail(INSUFFICIENT_DRIVER);
    if (device_count_error) return fail(device_count_error);
    *count = device_count;
    return device_count ? OK : fail(NO_DEVICE);
}
int cudaDriverGetVersion(int *version) { ENTER; *version = driver_version; return OK; }
int cudaRuntimeGetVersion(int *version) { ENTER; *version = 13000; return OK; }
int cudaDeviceGetAttribute(int *value, int which, int device) {
    ENTER;
    if (device != 0) return fail(INVALID_VALUE);
    *value = which == 75 ? 8 : which == 76 ? 7 : which == 18 ? integrated : which == 19 ? 1 : -1;
    return OK;
}
int cudaGetDeviceProperties(char *properties, int device) {
    ENTER;
    if (device != 0) return fail(INVALID_VALUE);
    memset(properties, 'x', 1008);
    strcpy(properties, "Fake Orin");
    return OK;
}
int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    ENTER;
    *free_bytes = memory - allocated;
    *total = memory;
    return OK;
}
int cudaGetLastError(void) { int code = last_error; if (!sticky) last_error = OK; return code; }
const char *cudaGetErrorName(int code) {
    return code == 2 ? "cudaErrorMemoryAllocation" : code == 35 ? "cudaErrorInsufficientDriver"
         : code == 100 ? "cudaErrorNoDevice" : code == 700 ? "cudaErrorIllegalAddress"
         : code == 900 ? "cudaErrorStreamCaptureUnsupported" : "cudaErrorOther";
}
const char *cudaGetErrorString(int code) {
    return code == 2 ? "out of memory" : code == 35 ? "driver version is insufficient"
         : code == 100 ? "no CUDA-capable device is detected"
         : code == 700 ? "an illegal memory access was encountered" : "something else";
}
int cudaMalloc(void **address, size_t bytes) {
    ENTER;
    if (bytes > memory - allocated) return fail(OUT_OF_MEMORY);
    Handle *h = new_handle(DEVICE);
    h->address = aligned_alloc(256, (bytes / 256 + 1) * 256);
    memset(h->address, 0xCD, bytes);
    h->bytes = bytes;
    allocated += bytes;
    *address = h->address;
    return OK;
}
int cudaFree(void *address) { return destroy(address, DEVICE); }
int cudaHostAlloc(void **address, size_t bytes, unsigned flags) {
    ENTER;
    Handle *h = new_handle(PINNED);
    h->address = aligned_alloc(256, (bytes / 256 + 1) * 256);
    memset(h->address, 0xAB, bytes);
    h->bytes = bytes;
    h->mapped = flags == 2;
    *address = h->address;
    return OK;
}
int cudaHostGetDevicePointer(void **seen, void *host, unsigned flags) {
    ENTER;
    Handle *h = find(host, PINNED);
    if (!h || !h->mapped || flags) return fail(INVALID_VALUE);
    *seen = h->address + MAPPED_OFFSET;
    return OK;
}
int cudaFreeHost(void *address) { return destroy(address, PINNED); }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) {
    ENTER;
    if (flags != 1) return fail(INVALID_VALUE);
    *stream = new_handle(STREAM);
    return OK;
}
int cudaStreamDestroy(void *stream) { return destroy(stream, STREAM); }
int cudaStreamSynchronize(void *stream) {
    ENTER;
    Handle *s = find(stream, STREAM);
    if (!s) return fail(INVALID_HANDLE);
    if (s->capturing) { s->invalidated = 1; return fail(CAPTURE_UNSUPPORTED); }
    int code = OK;
    for (int i = 0; i < s->count && !code; i++) code = execute(&s->work[i]);
    s->count = 0;
    return code;
}
int cudaMemcpyAsync(void *to, void *from, size_t bytes, int kind, void *stream) {
    ENTER;
    if (kind < 1 || kind > 3) return fail(INVALID_VALUE);
    return enqueue(stream, (Work){.what = 0, .to = to, .from = from, .bytes = bytes,
                                  .kind = kind});
}
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) {
    ENTER;
    if (!find(event, EVENT) || flags) return fail(INVALID_HANDLE);
    return enqueue(stream, (Work){.what = 3, .event = event});
}
int cudaDeviceSynchronize(void) {
    ENTER;
    device_synchronizations++;
    int code = OK;
    for (int i = -1; i < MAX_HANDLES && !code; i++) {
        Handle *s = i < 0 ? &legacy : &handles[i];
        if (!s->used || s->kind != STREAM) continue;
        int count = s->count;
        s->count = 0;
        for (int k = 0; k < count && !code; k++) code = execute(&s->work[k]);
    }
    return code;
}
int cudaPointerGetAttributes(int *attributes, char *address) {
    ENTER;
    attributes[0] = 0; /* not registered */
    attributes[1] = -2;
    for (int i = 0; i < MAX_HANDLES; i++) {
        Handle *h = &handles[i];
        if (!h->used || h->kind > PINNED || address < h->address
            || address >= h->address + h->bytes) continue;
        attributes[0] = h->kind == DEVICE ? 2 : 1;
        attributes[1] = h->device;
    }
    return OK;
}
int cudaEventCreateWithFlags(void **event, unsigned flags) {
    ENTER;
    if (flags != 2) return fail(INVALID_VALUE);
    *event = new_handle(EVENT);
    return OK;
}
int cudaEventCreate(void **event) { ENTER; *event = new_handle(EVENT); return OK; }
int cudaEventRecord(void *event, void *stream) {
    ENTER;
    if (!find(event, EVENT)) return fail(INVALID_HANDLE);
    return enqueue(stream, (Work){.what = 2, .event = event});
}
int cudaEventElapsedTime(float *ms, void *start, void *end) {
    ENTER;
    Handle *a = find(start, EVENT), *b = find(end, EVENT);
    if (!a || !b) return fail(INVALID_HANDLE);
    *ms = (float)(b->time - a->time);
    return OK;
}
int cudaEventDestroy(void *event) { return destroy(event, EVENT); }
int cudaStreamBeginCapture(void *stream, int mode) {
    ENTER;
    Handle *s = find(stream, STREAM);
    if (!s || s->capturing || mode != 1) return fail(INVALID_VALUE);
    s->capturing = 1;
    s->before = s->count;
    s->invalidated = 0;
    return OK;
}
int cudaStreamEndCapture(void *stream, void **graph) {
    *graph = NULL;
    Handle *s = find(stream, STREAM);
    if (!s || !s->capturing) return fail(INVALID_VALUE);
    int count = s->count - s->before;
    s->count = s->before;
    s->capturing = 0;
    ENTER; /* a failed end ends the capture all the same */
    if (s->invalidated) return fail(CAPTURE_INVALIDATED);
    Handle *g = new_handle(GRAPH);
    memcpy(g->work, s->work + s->before, count * sizeof(Work));
    g->count = count;
    *graph = g;
    return OK;
}
int cudaGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long flags) {
    ENTER;
    Handle *g = find(graph, GRAPH);
    if (!g || flags) return fail(INVALID_VALUE);
    Handle *e = new_handle(EXEC);
    memcpy(e->work, g->work, g->count * sizeof(Work));
    e->count = g->count;
    *exec = e;
    return OK;
}
int cudaGraphLaunch(void *exec, void *stream) {
    ENTER;
    Handle *e = find(exec, EXEC);
    if (!e) return fail(INVALID_HANDLE);
    for (int i = 0; i < e->count; i++) {
        int code = enqueue(stream, e->work[i]);
        if (code) return code;
    }
    return OK;
}
int cudaGraphDestroy(void *graph) { return destroy(graph, GRAPH); }
int cudaGraphExecDestroy(void *exec) { return destroy(exec, EXEC); }
