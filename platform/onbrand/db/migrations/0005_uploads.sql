-- depends: 0004_tickets
-- Uploads that go straight to the store: announced here, sent to a signed link, and then checked and made into things.
-- The bytes as they were sent lie in the brand's folder `incoming` and have no row in storage.objects: no link opens them.
set role onbrand_owner;

create table app.uploads (
  id uuid not null default gen_random_uuid(),
  brand_id text not null references app.brands,
  user_id uuid not null,
  kind text not null check (kind in ('image', 'zip', 'document')),
  filename text not null check (char_length(filename) between 1 and 255),
  content_type text not null check (content_type in
    ('image/png', 'image/jpeg', 'image/webp', 'application/zip', 'application/pdf', 'text/markdown')),
  bytes bigint not null check (bytes > 0),
  sha256 text check (sha256 ~ '^[0-9a-f]{64}$'),
  object text not null default 'other' check (object in ('logo', 'product', 'person', 'packaging', 'other')),
  caption text check (char_length(caption) <= 5000),
  metadata jsonb not null default '{}' check (jsonb_typeof(metadata) = 'object' and octet_length(metadata::text) <= 20000),
  status text not null default 'pending' check (status in ('pending', 'completed', 'refused', 'canceled', 'expired')),
  error jsonb check (octet_length(error::text) <= 5000),
  created_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz not null default clock_timestamp() + interval '1 hour',
  ended_at timestamptz,
  swept_at timestamptz,
  primary key (brand_id, id),
  check ((status = 'pending') = (ended_at is null))
);
create index uploads_by_time on app.uploads (brand_id, created_at, id);
-- For sweep_uploads, over all brands: not for searches by who may run SQL (see brand_users_by_user).
create index uploads_by_end on app.uploads ((expires_at at time zone 'UTC'));
alter index app.uploads_by_end alter column 1 set statistics 0;

-- What an upload became, by their ids, in the order of the file: of a zip there are many assets.
create table app.upload_objects (
  brand_id text not null,
  upload_id uuid not null,
  index integer not null check (index >= 0),
  asset_id uuid,
  document_id uuid,
  primary key (brand_id, upload_id, index),
  check (num_nonnulls(asset_id, document_id) = 1),
  foreign key (brand_id, upload_id) references app.uploads (brand_id, id) on delete cascade,
  foreign key (brand_id, asset_id) references app.brand_assets (brand_id, id) on delete cascade
);
create index upload_objects_by_asset on app.upload_objects (brand_id, asset_id) where asset_id is not null;
create index upload_objects_by_document on app.upload_objects (brand_id, document_id) where document_id is not null;

-- A link is good for one upload: what ended is never opened again.
create function app.tg_upload_guard() returns trigger
language plpgsql set search_path = '' as $$
begin
  if old.status <> 'pending' and to_jsonb(new) - 'swept_at' is distinct from to_jsonb(old) - 'swept_at' then
    raise exception 'the upload has ended' using errcode = 'OB002';
  end if;
  if old.status = 'pending' and new.status = 'completed' and old.expires_at < clock_timestamp() then
    raise exception 'the upload has expired' using errcode = 'OB002';
  end if;
  return new;
end $$;
create trigger upload_guard before update on app.uploads for each row execute function app.tg_upload_guard();

call app.build_wall('app.uploads');
call app.build_wall('app.upload_objects');
call app.need_scope('app.uploads', 'insert', 'upload');
call app.need_scope('app.uploads', 'update', 'upload');
call app.need_scope('app.upload_objects', 'insert', 'upload');

grant select on app.uploads, app.upload_objects to authenticated;
grant insert (brand_id, user_id, kind, filename, content_type, bytes, sha256, object, caption, metadata)
  on app.uploads to authenticated;
grant update (status, error, ended_at) on app.uploads to authenticated;
grant insert (brand_id, upload_id, index, asset_id, document_id) on app.upload_objects to authenticated;

create policy member_select on app.uploads for select to authenticated using (true);
create policy member_insert on app.uploads for insert to authenticated
  with check (user_id = (select private.uid()));
create policy owner_update on app.uploads for update to authenticated
  using (user_id = (select private.uid())) with check (user_id = (select private.uid()));

create policy member_select on app.upload_objects for select to authenticated using (true);
create policy owner_insert on app.upload_objects for insert to authenticated with check (exists (
  select 1 from app.uploads u where u.brand_id = upload_objects.brand_id and u.id = upload_objects.upload_id
    and u.user_id = (select private.uid()) and u.status = 'completed')
  and (document_id is not null or exists (select 1 from app.brand_assets a
    where a.brand_id = upload_objects.brand_id and a.id = upload_objects.asset_id and a.user_id = (select private.uid()))));

reset role;

-- What nobody completed ends, also when its member has left; and what ended is forgotten after a day. The dispatcher
-- learns whose bytes to remove, an hour after the last link ended and once more a day later, and nothing else.
grant select (id, brand_id, kind, status, created_at, expires_at, swept_at), delete on app.uploads to onbrand_definer;
grant update (status, ended_at, swept_at) on app.uploads to onbrand_definer;

set role onbrand_definer;
create function private.sweep_uploads() returns table (brand_id text, upload_id uuid, kind text)
language plpgsql volatile security definer set search_path = '' as $$
declare old record;
begin
  perform private.must_be_signed();
  for old in
    select u.id, u.brand_id, u.kind, u.status, u.expires_at < clock_timestamp() - interval '1 day' as is_old
    from app.uploads u
    where u.expires_at at time zone 'UTC' < (clock_timestamp() - interval '1 hour') at time zone 'UTC'
      and (u.swept_at is null or u.expires_at < clock_timestamp() - interval '1 day')
    order by u.expires_at at time zone 'UTC' limit 200 for update of u skip locked
  loop
    if old.status = 'pending' then
      update app.uploads u set status = 'expired', ended_at = clock_timestamp()
        where u.brand_id = old.brand_id and u.id = old.id;
      perform private.audit_append(old.brand_id, 'system:' || old.id, 'upload.expire',
        jsonb_build_object('upload_id', old.id));
    end if;
    if old.is_old then
      delete from app.uploads u where u.brand_id = old.brand_id and u.id = old.id;
    else
      update app.uploads u set swept_at = clock_timestamp() where u.brand_id = old.brand_id and u.id = old.id;
    end if;
    return query select old.brand_id, old.id, old.kind;
  end loop;
end $$;
reset role;
grant execute on function private.sweep_uploads() to onbrand_dispatcher;
