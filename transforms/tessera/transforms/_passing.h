/* The inner loops of a pass, plain C without the interpreter; see _kernel.c, which alone includes this.

   Nothing is checked here: offsets, tables and sizes are those that _kernel.c checked when it made the Plan. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LOOK_UP = 256 }; /* what `flip` says of a place whose table is more than an exclusive or with 0 or 255 */

typedef struct {
    uint32_t from, to; /* seen from the tile's first value, in an image */
    uint32_t table;    /* where its table begins */
    uint32_t flip;
} Place;

typedef struct {
    ptrdiff_t channels, height, width, unit; /* `unit` is the side of a tile */
    ptrdiff_t size, count;                   /* values of an image, and of a tile */
    Place *places;                           /* of a tile, in the order of (channel, row, column) */
    uint8_t *tables;
    uint8_t *mask; /* of passes that only invert: (channels, mask_rows, width), what each value is inverted by */
    ptrdiff_t mask_rows;
    int looks_up; /* some table is more than an exclusive or */
} Plan;

static void look_up_four(const Plan *plan, const uint8_t *x, uint8_t *y, const size_t at[4])
{
    const Place *places = plan->places;
    const uint8_t *tables = plan->tables;
    const size_t a = at[0], b = at[1], c = at[2], d = at[3], count = (size_t)plan->count;
    for (size_t p = 0; p < count; p++) {
        const uint8_t *from = x + places[p].from, *table = tables + places[p].table;
        uint8_t *to = y + places[p].to;
        to[a] = table[from[a]];
        to[b] = table[from[b]];
        to[c] = table[from[c]];
        to[d] = table[from[d]];
    }
}

static void look_up_one(const Plan *plan, const uint8_t *x, uint8_t *y)
{
    const Place *places = plan->places;
    const uint8_t *tables = plan->tables;
    const size_t count = (size_t)plan->count;
    for (size_t p = 0; p < count; p++)
        y[places[p].to] = tables[places[p].table + x[places[p].from]];
}

static void move_four(const Plan *plan, const uint8_t *x, uint8_t *y, const size_t at[4])
{
    const Place *places = plan->places;
    const size_t a = at[0], b = at[1], c = at[2], d = at[3], count = (size_t)plan->count;
    for (size_t p = 0; p < count; p++) {
        const uint8_t *from = x + places[p].from, flip = (uint8_t)places[p].flip;
        uint8_t *to = y + places[p].to;
        to[a] = from[a] ^ flip;
        to[b] = from[b] ^ flip;
        to[c] = from[c] ^ flip;
        to[d] = from[d] ^ flip;
    }
}

static void move_one(const Plan *plan, const uint8_t *x, uint8_t *y)
{
    const Place *places = plan->places;
    const size_t count = (size_t)plan->count;
    for (size_t p = 0; p < count; p++)
        y[places[p].to] = x[places[p].from] ^ (uint8_t)places[p].flip;
}

static void by_tiles(const Plan *plan, const uint8_t *x, uint8_t *y, ptrdiff_t images)
{
    size_t at[4];
    int waiting = 0;
    for (ptrdiff_t image = 0; image < images; image++)
        for (ptrdiff_t row = 0; row < plan->height; row += plan->unit)
            for (ptrdiff_t column = 0; column < plan->width; column += plan->unit) {
                at[waiting++] = (size_t)(image * plan->size + row * plan->width + column);
                if (waiting == 4) {
                    (plan->looks_up ? look_up_four : move_four)(plan, x, y, at);
                    waiting = 0;
                }
            }
    while (waiting--)
        (plan->looks_up ? look_up_one : move_one)(plan, x + at[waiting], y + at[waiting]);
}

static void flip_values(const uint8_t *x, const uint8_t *mask, uint8_t *y, size_t count)
{
    for (size_t i = 0; i < count; i++)
        y[i] = x[i] ^ mask[i];
}

static void by_mask(const Plan *plan, const uint8_t *x, uint8_t *y, ptrdiff_t images)
{
    const ptrdiff_t part = plan->mask_rows * plan->width, plane = plan->height * plan->width;
    if (part == plane) { /* the mask is a whole image's */
        for (ptrdiff_t image = 0; image < images; image++)
            flip_values(x + image * plan->size, plan->mask, y + image * plan->size, (size_t)plan->size);
        return;
    }
    for (ptrdiff_t first = 0; first < images * plan->size; first += plane) {
        const uint8_t *mask = plan->mask + first / plane % plan->channels * part;
        for (ptrdiff_t at = first; at < first + plane; at += part)
            flip_values(x + at, mask, y + at, (size_t)part);
    }
}

/* Images last: the values of one place are a row of bytes, one of each image. */
static void turn_row(const Plan *plan, const Place *place, const uint8_t *x, uint8_t *y, size_t images)
{
    size_t i = 0;
    if (place->flip == LOOK_UP) {
        const uint8_t *table = plan->tables + place->table;
        for (; i + 8 <= images; i += 8) /* eight at a time: a twentieth faster */
            for (size_t j = i; j < i + 8; j++)
                y[j] = table[x[j]];
        for (; i < images; i++)
            y[i] = table[x[i]];
        return;
    }
    const uint64_t flips = place->flip ? ~(uint64_t)0 : 0;
    for (uint64_t eight; i + 8 <= images; i += 8) {
        memcpy(&eight, x + i, 8);
        eight ^= flips;
        memcpy(y + i, &eight, 8);
    }
    for (; i < images; i++)
        y[i] = x[i] ^ (uint8_t)place->flip;
}

static void by_rows(const Plan *plan, const uint8_t *x, uint8_t *y, ptrdiff_t images)
{
    const ptrdiff_t unit = plan->unit;
    for (ptrdiff_t row = 0; row < plan->height; row += unit)
        for (ptrdiff_t line = 0; line < plan->count; line += unit) /* one row of a tile, in all tiles side by side */
            for (ptrdiff_t column = 0; column < plan->width; column += unit) {
                const ptrdiff_t tile = row * plan->width + column;
                for (const Place *place = plan->places + line; place < plan->places + line + unit; place++)
                    turn_row(plan, place, x + (tile + place->from) * images, y + (tile + place->to) * images,
                             (size_t)images);
            }
}

static void run(const Plan *plan, const uint8_t *x, uint8_t *y, ptrdiff_t images, int images_last)
{
    if (images_last)
        by_rows(plan, x, y, images);
    else if (plan->mask)
        by_mask(plan, x, y, images);
    else
        by_tiles(plan, x, y, images);
}

