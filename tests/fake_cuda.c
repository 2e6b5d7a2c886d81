/* A stand-in for the few functions of CUDA's driver that are used, with files in memory for a GPU's: it takes the same
   arguments, of the same widths and layouts, and refuses others. FAKE_CUDA_FAILS names a function that fails. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define GRANULARITY (2u << 20)
#define HANDLES 0x7000000000000000u /* handles that do not fit into 32 bits */
#define REFUSED 1

typedef struct { int type, handle_types, location_type, location; void *metadata; unsigned char flags[8]; } Properties;
typedef struct { int location_type, location, flags; } Access;

static int living; /* handles, reservations and mappings */

int fake_living(void) { return living; }

static int fails(const char *name) {
    const char *chosen = getenv("FAKE_CUDA_FAILS");
    return chosen && !strcmp(chosen, name);
}

static int is_wanted(const Properties *wanted) {
    return wanted->type == 1 && wanted->handle_types == 1 && wanted->location_type == 1 && wanted->location == 0 &&
           !wanted->metadata && !*(const uint64_t *)wanted->flags;
}

int cuMemGetAllocationGranularity(size_t *granularity, const Properties *wanted, int option) {
    if (fails(__func__) || !is_wanted(wanted) || option != 0) return REFUSED;
    *granularity = GRANULARITY;
    return 0;
}

int cuMemCreate(uint64_t *handle, size_t size, const Properties *wanted, uint64_t flags) {
    if (fails(__func__) || !is_wanted(wanted) || !size || size % GRANULARITY || flags) return REFUSED;
    int file = memfd_create("gpu", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, size)) return REFUSED;
    if (pwrite(file, "left of another", 15, 0) != 15) return REFUSED;
    *handle = HANDLES + file;
    return living++, 0;
}

int cuMemRelease(uint64_t handle) {
    if (fails(__func__) || handle < HANDLES || close((int)(handle - HANDLES))) return REFUSED;
    return living--, 0;
}

int cuMemExportToShareableHandle(void *shared, uint64_t handle, int type, uint64_t flags) {
    if (fails(__func__) || handle < HANDLES || type != 1 || flags) return REFUSED;
    return (*(int *)shared = dup((int)(handle - HANDLES))) < 0;
}

int cuMemImportFromShareableHandle(uint64_t *handle, void *shared, int type) {
    if (fails(__func__) || type != 1) return REFUSED;
    int file = dup((int)(intptr_t)shared);
    if (file < 0) return REFUSED;
    *handle = HANDLES + file;
    return living++, 0;
}

int cuMemAddressReserve(uint64_t *address, size_t size, size_t alignment, uint64_t wish, uint64_t flags) {
    if (fails(__func__) || size % GRANULARITY || alignment || wish || flags) return REFUSED;
    void *found = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) return REFUSED;
    *address = (uint64_t)found;
    return living++, 0;
}

int cuMemAddressFree(uint64_t address, size_t size) {
    if (fails(__func__) || munmap((void *)address, size)) return REFUSED;
    return living--, 0;
}

int cuMemMap(uint64_t address, size_t size, size_t offset, uint64_t handle, uint64_t flags) {
    if (fails(__func__) || offset || flags || handle < HANDLES) return REFUSED;
    int file = (int)(handle - HANDLES);
    if (lseek(file, 0, SEEK_END) != (off_t)size) return REFUSED;
    if (mmap((void *)address, size, PROT_NONE, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED) return REFUSED;
    return living++, 0;
}

int cuMemSetAccess(uint64_t address, size_t size, const Access *access, size_t count) {
    if (fails(__func__) || count != 1 || access->location_type != 1 || access->location || access->flags != 3)
        return REFUSED;
    return mprotect((void *)address, size, PROT_READ | PROT_WRITE) ? REFUSED : 0;
}

int cuMemUnmap(uint64_t address, size_t size) {
    if (fails(__func__)) return REFUSED;
    mmap((void *)address, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return living--, 0;
}

int cuMemsetD8Async(uint64_t address, unsigned char value, size_t size, void *stream) {
    if (fails(__func__) || stream) return REFUSED;
    memset((void *)address, value, size);
    return 0;
}

int cuMemcpyAsync(uint64_t target, uint64_t source, size_t size, void *stream) {
    if (fails(__func__) || stream) return REFUSED;
    memcpy((void *)target, (void *)source, size);
    return 0;
}

int cuStreamSynchronize(void *stream) { return fails(__func__) || stream ? REFUSED : 0; }
