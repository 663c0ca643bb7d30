/* One pass of a keyed transform over uint8 images, without NumPy's two steps and its cost per call.

   A stack of steps treats every square tile of `unit` x `unit` pixels alike (docs/spec.md, rule T-19), so a pass is
   known from one tile: y[p] = tables[choice[p]][x[index[p]]] for its channels * unit * unit values. The inner loops
   (_passing.h) take one place of four tiles at a time; nothing is read for a value but the value and its table's
   entry, which is why a shuffle before a table costs what the table costs.

   A Kernel checks its arrays once, when it is made, and keeps a copy of its own. At run time it trusts nothing but
   these: whatever bytes an image holds, a byte has an entry in each table. It is never changed afterwards, so threads
   may share it. Only the limited C API of Python 3.11 is used; NumPy is reached as any Python module is. */

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include "_passing.h"

#define MAX_SIDE ((Py_ssize_t)1 << 26)
#define MAX_VALUES ((Py_ssize_t)1 << 30) /* of one image: offsets are 32 bits wide */
#define MAX_TABLES 65536                 /* what `choice`, uint16, can name */
#define MASK_VALUES 32768                /* as much of a mask as stays in a first-level cache */
#define RELEASE_VALUES 32768             /* below, giving up the interpreter costs more than it brings */

typedef struct {
    PyObject_HEAD
    PyTypeObject *array_type;
    PyObject *empty, *uint8, *shape;
    Plan plan;
} Kernel;

typedef struct {
    PyObject *array_type, *empty, *uint8, *kernel_type;
} State;

/* ---- one call: what is ours, a new array, and the work ---- */

/* Return how many images the buffer holds, or -1 when it is not uint8 of our shape. */
static Py_ssize_t fitting(const Plan *plan, const Py_buffer *x, int images_last)
{
    const Py_ssize_t *sides = x->shape;
    Py_ssize_t images = 1;
    if (x->format == NULL || strcmp(x->format, "B") != 0 || x->itemsize != 1)
        return -1;
    if (x->ndim == 4)
        images = images_last ? sides[3] : *sides++;
    else if (x->ndim != 3 || images_last)
        return -1;
    if (sides[0] != plan->channels || sides[1] != plan->height || sides[2] != plan->width)
        return -1;
    return x->len == images * plan->size ? images : -1;
}

static PyObject *new_array(const Kernel *k, const Py_buffer *like)
{
    const Py_ssize_t *sides = like->shape;
    PyObject *made, *shape;
    if (like->ndim == 3)
        return PyObject_CallFunctionObjArgs(k->empty, k->shape, k->uint8, NULL);
    shape = Py_BuildValue("(nnnn)", sides[0], sides[1], sides[2], sides[3]);
    if (shape == NULL)
        return NULL;
    made = PyObject_CallFunctionObjArgs(k->empty, shape, k->uint8, NULL);
    Py_DECREF(shape);
    return made;
}

static PyObject *applied(const Kernel *k, const Py_buffer *x, Py_ssize_t images, int images_last)
{
    Py_buffer y;
    PyObject *made = new_array(k, x);
    if (made == NULL || PyObject_GetBuffer(made, &y, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) < 0) {
        Py_XDECREF(made);
        return NULL;
    }
    if (y.len != x->len) {
        PyBuffer_Release(&y);
        Py_DECREF(made);
        PyErr_SetString(PyExc_RuntimeError, "numpy.empty gave an array of another size");
        return NULL;
    }
    if (x->len < RELEASE_VALUES) {
        run(&k->plan, x->buf, y.buf, images, images_last);
    } else {
        Py_BEGIN_ALLOW_THREADS
        run(&k->plan, x->buf, y.buf, images, images_last);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&y);
    return made;
}

static PyObject *call(Kernel *k, PyObject *x, int images_last)
{
    Py_buffer view;
    Py_ssize_t images;
    PyObject *made;
    if (Py_TYPE(x) != k->array_type)
        Py_RETURN_NONE;
    if (PyObject_GetBuffer(x, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) {
        if (!PyErr_ExceptionMatches(PyExc_ValueError) && !PyErr_ExceptionMatches(PyExc_BufferError))
            return NULL;
        PyErr_Clear(); /* not contiguous, or of a type without a buffer format */
        Py_RETURN_NONE;
    }
    images = fitting(&k->plan, &view, images_last);
    if (images < 0) {
        made = Py_None;
        Py_INCREF(made);
    } else {
        made = applied(k, &view, images, images_last);
    }
    PyBuffer_Release(&view);
    return made;
}

static PyObject *kernel_run(PyObject *self, PyObject *x) { return call((Kernel *)self, x, 0); }

static PyObject *kernel_images_last(PyObject *self, PyObject *x) { return call((Kernel *)self, x, 1); }

/* ---- setting up: everything that is trusted later is checked here ---- */

/* Fill `view` with `count` elements of `size` bytes, their format one of `formats`; else -1 with an exception. */
static int buffer_of(PyObject *array, Py_buffer *view, const char *name, const char *formats, Py_ssize_t size,
                     Py_ssize_t count)
{
    if (PyObject_GetBuffer(array, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0)
        return -1;
    if (view->format != NULL && strlen(view->format) == 1 && strchr(formats, view->format[0]) != NULL &&
        view->itemsize == size && view->len == count * size)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s: not %zd contiguous elements of %zd bytes and the right type", name, count,
                 size);
    PyBuffer_Release(view);
    return -1;
}

static int set_shape(Plan *plan)
{
    const Py_ssize_t sides[] = {plan->channels, plan->height, plan->width, plan->unit};
    for (int i = 0; i < 4; i++)
        if (sides[i] < 1 || sides[i] > MAX_SIDE)
            goto wrong;
    if (plan->height % plan->unit || plan->width % plan->unit || plan->height > MAX_VALUES / plan->channels ||
        plan->width > MAX_VALUES / (plan->channels * plan->height))
        goto wrong;
    plan->size = plan->channels * plan->height * plan->width;
    plan->count = plan->channels * plan->unit * plan->unit;
    return 0;
wrong:
    PyErr_SetString(PyExc_ValueError, "the sides are not positive, too large, or no multiple of the unit");
    return -1;
}

static uint32_t offset_of(const Plan *plan, Py_ssize_t place)
{
    const Py_ssize_t line = place / plan->unit, channel = line / plan->unit;
    return (uint32_t)((channel * plan->height + line % plan->unit) * plan->width + place % plan->unit);
}

/* Return 0 or 255 when a table is the exclusive or with it, else LOOK_UP. */
static uint32_t flip_of(const uint8_t *table)
{
    const uint8_t flip = table[0];
    if (flip != 0 && flip != 255)
        return LOOK_UP;
    for (int value = 0; value < 256; value++)
        if (table[value] != (value ^ flip))
            return LOOK_UP;
    return flip;
}

static int set_tables(Plan *plan, const uint8_t *tables, Py_ssize_t known, const uint16_t *choice)
{
    uint32_t *flips = PyMem_Malloc((size_t)known * sizeof(uint32_t));
    plan->tables = PyMem_Malloc((size_t)known * 256);
    if (flips == NULL || plan->tables == NULL) {
        PyMem_Free(flips);
        PyErr_NoMemory();
        return -1;
    }
    memcpy(plan->tables, tables, (size_t)known * 256);
    for (Py_ssize_t i = 0; i < known; i++)
        flips[i] = flip_of(plan->tables + i * 256);
    for (Py_ssize_t p = 0; p < plan->count; p++) {
        const uint16_t table = choice[p];
        if (table >= known) {
            PyMem_Free(flips);
            PyErr_SetString(PyExc_ValueError, "choice names a table that is not there");
            return -1;
        }
        plan->places[p].table = (uint32_t)table * 256;
        plan->places[p].flip = flips[table];
        plan->looks_up |= flips[table] == LOOK_UP;
    }
    PyMem_Free(flips);
    return 0;
}

static int set_places(Plan *plan, const int64_t *index)
{
    for (Py_ssize_t p = 0; p < plan->count; p++) {
        const int64_t from = index == NULL ? p : index[p];
        if (from < 0 || from >= plan->count) {
            PyErr_SetString(PyExc_ValueError, "index names a place outside the tile");
            return -1;
        }
        plan->places[p].from = offset_of(plan, (Py_ssize_t)from);
        plan->places[p].to = offset_of(plan, p);
    }
    return 0;
}

/* For passes that move and look up nothing: the mask of as many rows of tiles as `MASK_VALUES` allows. */
static int set_mask(Plan *plan)
{
    plan->mask_rows = plan->unit;
    const Py_ssize_t most = MASK_VALUES / (plan->channels * plan->width);
    for (Py_ssize_t rows = plan->unit; rows <= plan->height && rows <= most; rows += plan->unit)
        if (plan->height % rows == 0)
            plan->mask_rows = rows;
    plan->mask = PyMem_Malloc((size_t)(plan->channels * plan->mask_rows * plan->width));
    if (plan->mask == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    uint8_t *next = plan->mask;
    for (Py_ssize_t channel = 0; channel < plan->channels; channel++)
        for (Py_ssize_t row = 0; row < plan->mask_rows; row++) {
            const Place *line = plan->places + (channel * plan->unit + row % plan->unit) * plan->unit;
            for (Py_ssize_t column = 0; column < plan->width; column++)
                *next++ = (uint8_t)line[column % plan->unit].flip;
        }
    return 0;
}

static int set_up(Plan *plan, PyObject *index, PyObject *tables, PyObject *choice)
{
    Py_buffer indices = {0}, bytes = {0}, choices = {0};
    int failed = -1;
    if (PyObject_GetBuffer(tables, &bytes, PyBUF_C_CONTIGUOUS) < 0)
        goto done;
    const Py_ssize_t known = bytes.len / 256;
    PyBuffer_Release(&bytes);
    if (known < 1 || known > MAX_TABLES) {
        PyErr_SetString(PyExc_ValueError, "there must be 1 to 65536 tables");
        goto done;
    }
    if (buffer_of(tables, &bytes, "tables", "B", 1, known * 256) < 0 ||
        buffer_of(choice, &choices, "choice", "H", 2, plan->count) < 0 ||
        (index != Py_None && buffer_of(index, &indices, "index", "lq", 8, plan->count) < 0))
        goto done;
    plan->places = PyMem_Calloc((size_t)plan->count, sizeof(Place));
    if (plan->places == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    failed = set_places(plan, indices.buf) < 0 || set_tables(plan, bytes.buf, known, choices.buf) < 0 ||
             (index == Py_None && !plan->looks_up && set_mask(plan) < 0);
done:
    PyBuffer_Release(&indices); /* of nothing, when it was never filled */
    PyBuffer_Release(&bytes);
    PyBuffer_Release(&choices);
    return failed ? -1 : 0;
}

static PyObject *kernel_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    PyObject *index, *tables, *choice;
    Py_ssize_t sides[4];
    if (named != NULL && PyDict_Size(named) > 0) {
        PyErr_SetString(PyExc_TypeError, "Kernel takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "nnnnOOO:Kernel", &sides[0], &sides[1], &sides[2], &sides[3], &index, &tables, &choice))
        return NULL;
    const State *state = PyType_GetModuleState(type);
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Kernel *k = state == NULL ? NULL : (Kernel *)allocate(type, 0); /* all zero but for its head */
    if (k == NULL)
        return NULL;
    k->plan = (Plan){.channels = sides[0], .height = sides[1], .width = sides[2], .unit = sides[3]};
    Py_INCREF(state->array_type);
    Py_INCREF(state->empty);
    Py_INCREF(state->uint8);
    k->array_type = (PyTypeObject *)state->array_type, k->empty = state->empty, k->uint8 = state->uint8;
    k->shape = Py_BuildValue("(nnn)", sides[0], sides[1], sides[2]);
    if (k->shape == NULL || set_shape(&k->plan) < 0 || set_up(&k->plan, index, tables, choice) < 0) {
        Py_DECREF(k);
        return NULL;
    }
    return (PyObject *)k;
}

static void kernel_dealloc(PyObject *self)
{
    Kernel *k = (Kernel *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyMem_Free(k->plan.places);
    PyMem_Free(k->plan.tables);
    PyMem_Free(k->plan.mask);
    Py_XDECREF((PyObject *)k->array_type);
    Py_XDECREF(k->empty);
    Py_XDECREF(k->uint8);
    Py_XDECREF(k->shape);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* ---- the module ---- */

static PyMethodDef kernel_methods[] = {
    {"run", kernel_run, METH_O, "Return the pass of (C, H, W) or (N, C, H, W), or None when it is no such array."},
    {"images_last", kernel_images_last, METH_O, "Return the pass of (C, H, W, N), or None when it is no such array."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot kernel_slots[] = {
    {Py_tp_new, kernel_new}, {Py_tp_dealloc, kernel_dealloc}, {Py_tp_methods, kernel_methods}, {0, NULL},
};

static PyType_Spec kernel_spec = {
    "tessera.transforms._kernel.Kernel", sizeof(Kernel), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, kernel_slots,
};

static int module_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    PyObject *numpy = PyImport_ImportModule("numpy");
    if (numpy == NULL)
        return -1;
    state->array_type = PyObject_GetAttrString(numpy, "ndarray");
    state->empty = PyObject_GetAttrString(numpy, "empty");
    state->uint8 = PyObject_CallMethod(numpy, "dtype", "s", "uint8");
    Py_DECREF(numpy);
    if (state->array_type == NULL || state->empty == NULL || state->uint8 == NULL)
        return -1;
    if (!PyType_Check(state->array_type)) {
        PyErr_SetString(PyExc_ImportError, "numpy.ndarray is not a type");
        return -1;
    }
    state->kernel_type = PyType_FromModuleAndSpec(module, &kernel_spec, NULL);
    return state->kernel_type == NULL ? -1 : PyModule_AddObjectRef(module, "Kernel", state->kernel_type);
}

static int module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->array_type);
    Py_CLEAR(state->empty);
    Py_CLEAR(state->uint8);
    Py_CLEAR(state->kernel_type);
    return 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->array_type);
    Py_VISIT(state->empty);
    Py_VISIT(state->uint8);
    Py_VISIT(state->kernel_type);
    return 0;
}

static void module_free(void *module) { module_clear((PyObject *)module); }

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernel", "Passes of keyed transforms, compiled.", sizeof(State), NULL, module_slots,
    module_traverse, module_clear, module_free,
};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&definition); }
